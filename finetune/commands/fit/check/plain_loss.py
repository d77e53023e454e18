"""Loss and steps of a run without what keeps a network from learning by heart."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from finetune.builders import Training
from finetune.builders.criterion import Criterion
from finetune.data.dataset import Batch
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.training.module import ClassificationModule


def get_plain_criterion(training: Training) -> Criterion:
    """Return the criterion of the last epoch, with class weights, without smoothed labels."""
    last_epoch = training.config.trainer.epochs - 1
    criterion = training.module.recipe.criterion_schedule(last_epoch)
    if isinstance(criterion, partial) and "label_smoothing" in criterion.keywords:
        return partial(criterion, label_smoothing=0.0)
    return criterion


@contextmanager
def no_dropout(classifier: ImageClassifier, depth: int) -> Iterator[None]:
    """Unfreeze to a depth within the block, with BatchNorm as in training and without dropout."""
    before = classifier.depth
    with eval_mode(classifier):
        classifier.set_depth(depth)
        classifier.train()
        layers = [one for one in classifier.modules() if isinstance(one, _BatchNorm)]
        modes = [layer.training for layer in layers]
        classifier.eval()
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
        try:
            yield
        finally:
            classifier.set_depth(before)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Return the images and labels of a batch on a device."""
    return Batch(
        image=batch["image"].to(device), label=batch["label"].to(device), index=batch["index"]
    )


def select_images(batch: Batch, rows: Any) -> Batch:
    """Return some images of a batch."""
    chosen = torch.as_tensor(rows)
    return Batch(
        image=batch["image"][chosen.to(batch["image"].device)],
        label=batch["label"][chosen.to(batch["label"].device)],
        index=batch["index"][chosen],
    )


def compute_chance_loss(labels: Tensor, num_classes: int, criterion: Criterion) -> float:
    """Return the loss of logits that are all alike."""
    with torch.no_grad():
        return float(criterion(torch.zeros(len(labels), num_classes, device=labels.device), labels))


def predict_logits(module: ClassificationModule, images: Tensor, *, size: int = 16) -> Tensor:
    """Return logits (N, K) of pixels (N, H, W, C), in eval mode."""
    with torch.no_grad(), eval_mode(module):
        parts = [module(part.to(module.device)) for part in torch.split(images, size)]
    return torch.cat(parts)


def measure_batch(
    module: ClassificationModule, batch: Batch, criterion: Criterion
) -> tuple[float, int]:
    """Return the loss of all images, in eval mode, and how many are wrong."""
    logits = predict_logits(module, batch["image"])
    with torch.no_grad():
        return float(criterion(logits, batch["label"])), count_errors(logits, batch["label"])


def count_errors(logits: Tensor, labels: Tensor) -> int:
    """Return how many images have another class than their label, or any wrong label of several.

    Args:
        logits: Logits, shape (N, K).
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, (N, K).
    """
    return int((~find_right(logits, labels)).sum())


def find_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each image is right, in all of its labels, shape (N,); arguments as above."""
    is_finite = logits.isfinite().all(dim=1)
    if labels.ndim == 2:
        return is_finite & ((logits > 0) == (labels > 0.5)).all(dim=1)
    return is_finite & (logits.argmax(dim=1) == labels)


def take_step(
    training: Training, batch: Batch, criterion: Criterion, optimizer: Optimizer
) -> tuple[float, int, float]:
    """Take an optimizer step, and return what was before it.

    Returns:
        Loss, number of wrong images, and norm of the gradient of the loss by the logits, which is 0
        where the loss does not depend on them.
    """
    module, clip = training.module, training.config.trainer.gradient_clip_val
    optimizer.zero_grad()
    logits = module(batch["image"])
    logits.retain_grad()
    loss = criterion(logits, batch["label"])
    errors, value = count_errors(logits.detach(), batch["label"]), float(loss.detach())
    if not loss.requires_grad:
        return value, errors, 0.0
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        torch.nn.utils.clip_grad_norm_(module.classifier.parameters(), clip)
    optimizer.step()
    return value, errors, 0.0 if logits.grad is None else float(logits.grad.norm())
