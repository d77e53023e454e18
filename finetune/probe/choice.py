"""Which penalty a head is fitted with: that of the smallest loss on images left out of the fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.probe.logistic import HeadFitter, LinearHead, Problem, Rows

PENALTIES = tuple(10.0 ** (-step / 2) for step in range(2, 13))
"""From 0.1 to 1e-6, for features of norm 1."""

_FOLDS = 5
_FOLDS_UP_TO = 20_000
"""With more images one fold tells enough."""

_PATIENCE = 2

_ROUGHLY, _EXACTLY = 1e-4, 1e-5


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head, and how it was chosen.

    Attributes:
        head: Fitted to all images.
        penalty: The chosen one.
        held_out_loss: Weighted mean loss of images that the fit had left out.
        held_out_accuracy: Weighted share of them that come out right.
        held_out_images: How many.
    """

    head: LinearHead
    penalty: float
    held_out_loss: float
    held_out_accuracy: float
    held_out_images: int


def fit_head(
    views: Sequence[Rows],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Fitted:
    """Fit a head to all views of some images, with the penalty that cross-validation chooses.

    All views of an image stay together, and the first alone is what is measured. Five folds, class
    by class; of more than 20,000 images one of the five is left out once.

    Args:
        views: Features of each image, (N, D) for each view; the first is that of evaluation.
        labels: Class indices, shape (N,).
        weights: Of each image in the mean loss, shape (N,).
        num_classes: K.
        penalties: To choose from, the largest first.
    """
    folds = stratified_folds(labels, _FOLDS)
    used = _FOLDS if len(labels) <= _FOLDS_UP_TO else 1
    tried: dict[float, tuple[float, float]] = {}
    without = np.stack([weights * (folds != fold) for fold in range(used)])
    fitter = _fitter(views, labels, without, num_classes, tolerance=_ROUGHLY)
    for penalty in penalties:
        heads = fitter.fit(penalty)
        tried[penalty] = _measured(heads, views[0], labels, weights, folds)
        best = min(tried, key=lambda tried_one: tried[tried_one][0])
        if len(tried) - list(tried).index(best) > _PATIENCE:
            break
    whole = _fitter(views, labels, weights[None], num_classes, tolerance=_EXACTLY)
    for penalty in tried:  # along the same path, which is quicker than from nothing
        (head,) = whole.fit(penalty)
        if penalty == best:
            break
    loss, accuracy = tried[best]
    return Fitted(head, best, loss, accuracy, int((folds < used).sum()))


def stratified_folds(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the fold of each image, shape (N,), dealt out class by class; nothing is drawn."""
    order = np.argsort(labels, kind="stable")
    folds = np.empty(len(order), np.int64)
    folds[order] = np.arange(len(order)) % count
    return folds


class _Views:
    """All views of all images as one table, view after view."""

    def __init__(self, views: Sequence[Rows]) -> None:
        self.views = views
        self.rows, columns = views[0].shape
        self.shape = (len(views) * self.rows, columns)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        first, last, _ = rows.indices(self.shape[0])
        parts = []
        while first < last:
            view, row = divmod(first, self.rows)
            count = min(last - first, self.rows - row)
            parts.append(self.views[view][row : row + count])
            first += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _fitter(
    views: Sequence[Rows],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    num_classes: int,
    *,
    tolerance: float,
) -> HeadFitter:
    """Return what fits a head to each row of weights (H, N), which all views of an image share."""
    repeats = len(views)
    table = Problem(
        _Views(views), np.tile(labels, repeats), np.tile(weights, (1, repeats)), num_classes
    )
    return HeadFitter(table, tolerance=tolerance)


def _measured(
    heads: Sequence[LinearHead],
    features: Rows,
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    folds: NDArray[np.int64],
) -> tuple[float, float]:
    """Return weighted loss and accuracy of the images of each fold, by the head without them."""
    loss = right = total = 0.0
    for fold, head in enumerate(heads):
        left_out = folds == fold
        log_p = head.logits(features)[torch.from_numpy(left_out)].log_softmax(dim=1)
        target = torch.from_numpy(labels[left_out])
        share = torch.from_numpy(weights[left_out]).float()
        loss -= float(log_p.gather(1, target[:, None])[:, 0] @ share)
        right += float((log_p.argmax(dim=1) == target).float() @ share)
        total += float(share.sum())
    return loss / max(total, 1e-12), right / max(total, 1e-12)
