"""Training of a network's last layers on maps that are kept of the layers before them.

What those say of an image is a constant while they are frozen, as the features are to the head. An
epoch costs the last layers alone, and no image is read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.probe.extractor import ActivationLayout
from finetune.system.hardware import autocast, seed_device


class ActivationArray(Protocol):
    """Maps, float32, flattened, of which any rows are read.

    Attributes:
        shape: (N, D).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, D)."""

    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""


@dataclass(frozen=True, slots=True)
class LastStageSettings:
    """How the last layers are trained.

    Attributes:
        num_passes: Epochs over the images, each seen in one of its views.
        batch_size: Images of a step; the last of an epoch may have fewer.
        micro_batch_size: Images of a step that are in memory together; it makes no difference otherwise.
        lr_factor: Steps that are done to the factor of all learning rates.
        gradient_clip: Largest norm of the gradient; 0 is no limit.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: Of the order of images, of their views and of dropout.
    """

    num_passes: int
    batch_size: int
    micro_batch_size: int
    lr_factor: Callable[[int], float]
    gradient_clip: float
    precision: str
    seed: int


def iter_training_passes(
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
    """Train pass by pass, and yield the mean weighted cross-entropy of each.

    Args:
        last_stage: Takes maps (B, ...), returns logits (B, K); on the device.
        optimizer: Of what trains in it.
        views: Maps of each image, (N, D) for each view.
        labels: Class indices, shape (N,).
        weights: Of each image in the mean loss, shape (N,).
        logit_offset: Added to the logits in the loss alone, shape (K,); None adds nothing.
        layout: Of the maps.
        settings: Steps and rates.
        device: Where the tail is.
        after_step: Called after each.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    shares = torch.from_numpy(weights / weights.mean()).float()
    added = None if logit_offset is None else logit_offset.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "16-mixed")
    step = 0
    for number in range(settings.num_passes):
        generator = np.random.default_rng([settings.seed, number])
        order = generator.permutation(len(labels))
        seen_as = generator.integers(len(views), size=len(labels))
        total = 0.0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_device(device, int(generator.integers(2**63)))
            for first in range(0, len(order), settings.batch_size):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * settings.lr_factor(step)
                rows = np.sort(
                    order[first : first + settings.batch_size]
                )  # as they lie on the disk
                for start in range(0, len(rows), settings.micro_batch_size):
                    some = rows[start : start + settings.micro_batch_size]
                    maps = layout.unflatten(_gather_views(views, some, seen_as), device)
                    with autocast(settings.precision, device):
                        logits = last_stage(maps).float()
                    if added is not None:
                        logits = logits + added
                    target = torch.from_numpy(labels[some]).to(device)
                    losses = nn.functional.cross_entropy(logits, target, reduction="none")
                    loss = losses @ shares[some].to(device) / len(rows)
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                    total += loss.item() * len(rows)
                scaler.unscale_(optimizer)
                if settings.gradient_clip:
                    nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                after_step()
        yield total / len(order)


def compute_last_stage_logits(
    last_stage: nn.Module,
    activations: ActivationArray,
    *,
    layout: ActivationLayout,
    batch_size: int,
    precision: str,
    device: torch.device,
) -> Tensor:
    """Return logits float32 (N, K), on the CPU, by last layers in eval mode.

    Args:
        last_stage: Takes maps (B, ...), returns logits (B, K); on the device.
        activations: Of N images.
        layout: Of the maps.
        batch_size: Images at once.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        device: Where the tail is.
    """
    parts = []
    for first in range(0, activations.shape[0], batch_size):
        some = layout.unflatten(torch.from_numpy(activations[first : first + batch_size]), device)
        with torch.inference_mode(), autocast(precision, device):
            parts.append(last_stage(some).float().cpu())
    return torch.cat(parts).clone()


def _gather_views(
    views: Sequence[ActivationArray], rows: NDArray[np.int64], view_indices: NDArray[np.int64]
) -> Tensor:
    """Return the maps (n, D) of some images, each in the view that it is seen as."""
    found = np.empty((len(rows), views[0].shape[1]), np.float32)
    for number, view in enumerate(views):
        chosen = view_indices[rows] == number
        if chosen.any():
            found[chosen] = view[rows[chosen]]
    return torch.from_numpy(found)
