"""Training and evaluation of a last stage on cached activations.

While the layers before are frozen, their activations for an image are constant, as its features
are. An epoch costs the forward and backward passes of the last stage alone, and reads no images.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.diagnosis.divergence_error import Divergence, DivergenceError
from finetune.probe.features.extractor import ActivationLayout
from finetune.probe.logistic import FeatureArray
from finetune.system.hardware import autocast, seed_device


class ActivationArray(FeatureArray, Protocol):
    """Float32 activations, flattened to (N, D), that are read by slices or by row indices."""

    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> NDArray[np.float32]:
        """Return the activations of some rows, shape (n, D)."""


@dataclass(frozen=True, slots=True)
class LastStageSettings:
    """Hyperparameters of the training.

    Attributes:
        num_epochs: Epochs over the images, each image in one of its views per epoch.
        batch_size: Images of an optimiser step; the last step of an epoch may have fewer.
        micro_batch_size: Images of a forward pass; without effect on the result but for rounding.
        lr_factor: Function of the number of completed steps to the factor of all learning rates.
        gradient_clip: Largest norm of the gradient; 0 for no clipping.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: Seed of the order of images, of their views and of dropout.
    """

    num_epochs: int
    batch_size: int
    micro_batch_size: int
    lr_factor: Callable[[int], float]
    gradient_clip: float
    precision: str
    seed: int


def iter_training_epochs(
    last_stage: nn.Module,
    optimizer: Optimizer,
    views: Sequence[ActivationArray],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    logit_offset: Tensor | None = None,
    layout: ActivationLayout,
    settings: LastStageSettings,
    device: torch.device,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[float]:
    """Train a last stage, and yield the weighted mean cross-entropy of each epoch.

    Args:
        last_stage: Module from activations (B, ...) to logits (B, K), on the device.
        optimizer: Optimiser of its trainable parameters.
        views: Activations of the images, (N, D) for each view.
        labels: Class indices, shape (N,).
        weights: Weight of each image in the mean loss, shape (N,).
        logit_offset: Offset of the logits in the loss alone, shape (K,); None for no offset.
        layout: Layout of the activations of an image.
        settings: Hyperparameters.
        device: Device of the last stage.
        after_step: Callback after each optimiser step.

    Raises:
        DivergenceError: The loss of a step is NaN or infinite, before the step changes the weights.
    """
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sample_weights = torch.from_numpy(weights / weights.mean()).float()
    offset = None if logit_offset is None else logit_offset.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "16-mixed")

    def accumulate_gradients(
        rows: NDArray[np.int64], view_indices: NDArray[np.int64], *, batch_size: int
    ) -> float:
        """Run a forward and backward pass of a micro-batch; return its part of the summed loss."""
        activations = layout.unflatten(_gather_views(views, rows, view_indices), device)
        with autocast(settings.precision, device):
            logits = last_stage(activations).float()
        if offset is not None:
            logits = logits + offset
        target = torch.from_numpy(labels[rows]).to(device)
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        loss = losses @ sample_weights[rows].to(device) / batch_size
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.item() * batch_size)

    num_steps = 0
    for epoch in range(settings.num_epochs):
        generator = np.random.default_rng([settings.seed, epoch])
        order = generator.permutation(len(labels))
        view_indices = generator.integers(len(views), size=len(labels))
        total_loss = 0.0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_device(device, int(generator.integers(2**63)))
            for first in range(0, len(order), settings.batch_size):
                for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
                    group["lr"] = base_lr * settings.lr_factor(num_steps)
                # sorted, as they are on the disk
                batch = np.sort(order[first : first + settings.batch_size])
                for start in range(0, len(batch), settings.micro_batch_size):
                    rows = batch[start : start + settings.micro_batch_size]
                    total_loss += accumulate_gradients(rows, view_indices, batch_size=len(batch))
                if not math.isfinite(total_loss):
                    step = first // settings.batch_size + 1
                    raise _build_divergence_error(total_loss, epoch + 1, step, optimizer)
                scaler.unscale_(optimizer)
                if settings.gradient_clip:
                    nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                num_steps += 1
                after_step()
        yield total_loss / len(order)


def compute_last_stage_logits(
    last_stage: nn.Module,
    activations: ActivationArray,
    *,
    rows: NDArray[np.int64] | None = None,
    layout: ActivationLayout,
    batch_size: int,
    precision: str,
    device: torch.device,
) -> Tensor:
    """Return the logits (N, K) of a last stage in eval mode, float32, on the CPU.

    Args:
        last_stage: Module from activations (B, ...) to logits (B, K), on the device.
        activations: Activations of N images.
        rows: Rows of some of them, ascending, shape (N,); None for all.
        layout: Layout of the activations of an image.
        batch_size: Images of a forward pass.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        device: Device of the last stage.
    """
    chunks = []
    for first in range(0, activations.shape[0] if rows is None else len(rows), batch_size):
        part = slice(first, first + batch_size)
        values = torch.from_numpy(activations[part if rows is None else rows[part]])
        batch = layout.unflatten(values, device)
        with torch.inference_mode(), autocast(precision, device):
            chunks.append(last_stage(batch).float().cpu())
    return torch.cat(chunks).clone()


def _gather_views(
    views: Sequence[ActivationArray], rows: NDArray[np.int64], view_indices: NDArray[np.int64]
) -> Tensor:
    """Return the activations (n, D) of some images, each in its view of this epoch."""
    gathered = np.empty((len(rows), views[0].shape[1]), np.float32)
    for index, view in enumerate(views):
        is_selected = view_indices[rows] == index
        if is_selected.any():
            gathered[is_selected] = view[rows[is_selected]]
    return torch.from_numpy(gathered)


def _build_divergence_error(
    loss: float, epoch: int, step: int, optimizer: Optimizer
) -> DivergenceError:
    """Return the error of a step, counted from 1, whose loss is not finite."""
    rate = max(group["lr"] for group in optimizer.param_groups)
    return DivergenceError(
        f"Training the last stage diverged: its loss is {loss} in epoch {epoch}, step {step} "
        f"(learning rates up to {rate:.2g}). Lower optim.lr or optim.backbone_lr_scale, or leave "
        f"out probe.depth, which fits the head alone.",
        Divergence(
            what=f"the training loss is {loss}",
            epoch=epoch,
            step=step,
            is_first=epoch == step == 1,
            is_probe=True,
            learning_rates={"the last stage": rate},
        ),
    )
