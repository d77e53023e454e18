"""Change of a backbone's features by optimizer steps, to which its learning rates are scaled.

A step of AdamW changes every weight by about the learning rate, however large the weight is and
whatever depends on it. How far the features move at a given rate therefore differs between
pretrained backbones by a factor of ten, and so do the rates that train them best. The steps of any
of torch's optimizers are proportional to the learning rate, so that each can be measured.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.data.dataset import Batch
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier, eval_mode, preserve_state
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
from finetune.training.module import ClassificationModule
from finetune.training.optimization.step_growth import estimate_step_growth

TRIAL_LR = 1e-6
"""Learning rate of the measured steps."""

_TARGET_CHANGE = 0.1
_CHANGE_RANGE = (0.05, 0.2)
_MAX_RESCALES = 5

_NUM_SAMPLED_WEIGHTS = 20_000
"""Weights from whose gradients the growth of the steps is estimated."""


def measure_feature_change(
    module: ClassificationModule,
    batches: Sequence[Batch],
    eval_batch: Batch,
    *,
    make_optimizer: Callable[[ImageClassifier], Optimizer],
    create_optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    micro_batch_size: int,
    depth: int | None = None,
    max_grad_norm: float = 0.0,
) -> float | None:
    """Return the relative change of the features by a step, per unit of the learning rate.

    Optimizer steps with the gradients of some batches, all at the present weights, give the
    direction in which training starts. The weights are moved along it until the features of other
    images change by about a tenth of their spread, the norm of their deviation from the mean, and
    the result is extrapolated from there, and from the first steps of the optimizer to later ones.
    The network is left as it was.

    Args:
        module: Module with a linear head that is fitted already, on its device.
        batches: Training batches, one for each step.
        eval_batch: Images whose features are compared, two or more.
        make_optimizer: Function that builds an optimizer in which the last backbone group has the
            learning rate ``TRIAL_LR``, and the other groups theirs in proportion.
        create_optimizer: Function that builds the same optimizer from parameter groups.
        micro_batch_size: Images that are processed at once.
        depth: Number of layer groups that train, from the head; None for all.
        max_grad_norm: Maximum gradient norm; 0 does not clip.

    Returns:
        The change per step and unit of the learning rate of the last backbone group; None if the
        features do not differ, do not change or are not finite.

    Raises:
        OutOfMemoryError: A step needs more memory than is available.
    """
    classifier = module.classifier
    depth = len(classifier.groups) if depth is None else depth
    with (
        eval_mode(module),
        translate_out_of_memory(),
        preserve_state(classifier) as state,
    ):
        classifier.set_depth(depth)
        classifier.eval()
        backbone = _get_backbone_names(classifier)
        features = _compute_features(module, eval_batch, micro_batch_size)
        spread = float((features - features.mean(dim=0)).norm())
        if not 0 < spread < float("inf"):
            return None
        moves, gradient = _compute_moves(
            module, batches, make_optimizer, micro_batch_size, max_grad_norm
        )
        scale = 1.0
        for _ in range(_MAX_RESCALES):
            with torch.no_grad():
                for name, parameter in classifier.named_parameters():
                    parameter.copy_(state[name])
                    if name in backbone:
                        parameter.add_(moves[name], alpha=scale)
            moved = _compute_features(module, eval_batch, micro_batch_size)
            change = float((moved - features).norm()) / spread
            if not 0 < change < float("inf"):
                return None
            if _CHANGE_RANGE[0] <= change <= _CHANGE_RANGE[1]:
                break
            scale *= _TARGET_CHANGE / change
    growth = estimate_step_growth(gradient, create_optimizer, num_first_steps=len(batches))
    return growth * change / (scale * len(batches) * TRIAL_LR)


def _compute_moves(
    module: ClassificationModule,
    batches: Sequence[Batch],
    make_optimizer: Callable[[ImageClassifier], Optimizer],
    micro_batch_size: int,
    max_grad_norm: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the sum of the optimizer's steps for each parameter, and gradients of some weights.

    The first are of all parameters of the classifier, by name; the second are those of the last
    batch that has any, for weights of the backbone, shape (W,): a hinge loss of 0 has none.

    The optimizer works on a copy whose parameters are zero: added to a weight near 1, most of such
    a small step would be lost to rounding.
    """
    classifier = module.classifier
    shadow = copy.deepcopy(classifier)
    moves = dict(shadow.named_parameters())
    with torch.no_grad():
        for move in moves.values():
            move.zero_()
    optimizer = make_optimizer(shadow)
    backbone = _get_backbone_names(classifier)
    sample = torch.zeros(0)
    for step, batch in enumerate(batches):
        backpropagate(module, batch, step, micro_batch_size)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), max_grad_norm)
        for name, parameter in classifier.named_parameters():
            moves[name].grad, parameter.grad = parameter.grad, None
        optimizer.step()
        gradients = _sample_gradients(move.grad for name, move in moves.items() if name in backbone)
        sample = gradients if gradients.any() or not step else sample
    return {name: move.detach() for name, move in moves.items()}, sample


def _sample_gradients(gradients: Iterable[Tensor | None]) -> Tensor:
    """Return gradients of some weights, shape (W,), not all zero unless those of all weights are.

    Args:
        gradients: Gradients of each parameter; None if it is not trained.
    """
    flat = [gradient.flatten() for gradient in gradients if gradient is not None]
    stride = max(1, sum(map(len, flat)) // _NUM_SAMPLED_WEIGHTS)
    sample = torch.cat([gradient[::stride] for gradient in flat])
    if sample.any():
        return sample
    return torch.stack([gradient.abs().max() for gradient in flat])


def _get_backbone_names(classifier: ImageClassifier) -> set[str]:
    """Return the names of the parameters below the head in the classifier."""
    head_names = set(classifier.groups[0].parameter_names)
    return {
        f"network.{name}"
        for name, _ in classifier.network.named_parameters()
        if name not in head_names
    }


def backpropagate(
    module: ClassificationModule, batch: Batch, step: int, micro_batch_size: int
) -> float:
    """Accumulate the gradients of the mean training loss of a batch, and return the loss.

    Args:
        module: Module on its device.
        batch: Training batch.
        step: Number of the step, which determines mixup.
        micro_batch_size: Images that are processed at once.
    """
    num_images = len(batch["label"])
    total = 0.0
    for part in split_batch(batch, micro_batch_size):
        on_device = Batch(**{key: value.to(module.device) for key, value in part.items()})  # type: ignore[attr-defined, typeddict-item]
        loss = module.compute_loss(on_device, step) * (len(part["label"]) / num_images)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _compute_features(module: ClassificationModule, batch: Batch, micro_batch_size: int) -> Tensor:
    """Return the inputs of the head, float64, shape (B, D), on the CPU."""
    head = find_linear_head(module.classifier.network)
    assert head is not None, "only a probe's head is fitted, and it is linear"
    with torch.no_grad(), capture_head_inputs(head) as inputs:
        for part in split_batch(batch, micro_batch_size):
            _compute_logits(module, part)
    return torch.cat(inputs).cpu().double()


def _compute_logits(module: ClassificationModule, batch: Batch) -> Tensor:
    color_matrix = batch.get("color_matrix")
    logits: Tensor = module(
        batch["image"].to(module.device),
        None if color_matrix is None else color_matrix.to(module.device),
    )
    return logits


def split_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the micro-batches of a batch, of ``size`` images or fewer."""
    for first in range(0, len(batch["label"]), size):
        yield Batch(**{key: value[first : first + size] for key, value in batch.items()})  # type: ignore[index, typeddict-item]


@contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raise ``OutOfMemoryError`` for an error of the device within the block that means it."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # without the cause: its traceback holds every tensor of the step
        raise OutOfMemoryError(explain_out_of_memory(error)) from None
