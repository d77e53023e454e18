"""Which penalty a head is fitted with: that of the smallest loss on images left out of the fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.probe.logistic import FeatureArray, HeadFitter, LinearHead, LogisticProblem

PENALTIES = tuple(10.0 ** (-step / 2) for step in range(2, 13))
"""From 0.1 to 1e-6, for features of norm 1."""

_NUM_FOLDS = 5
_MAX_IMAGES_FOR_ALL_FOLDS = 20_000
"""With more images one fold tells enough."""

_PATIENCE = 2
_CHUNK_ROWS = 8192

_SEARCH_TOLERANCE, _FINAL_TOLERANCE = 1e-4, 1e-5


@dataclass(frozen=True, slots=True)
class CrossValidatedHead:
    """A head, and how it was chosen.

    Attributes:
        head: Fitted to all images.
        penalty: The chosen one.
        held_out_loss: Weighted mean loss, as fitted, of images that the fit had left out.
        held_out_accuracy: Weighted share of them that come out right, by the head's own logits.
        held_out_rows: Which they are, ascending, shape (M,).
        held_out_probabilities: Their class probabilities by the head without them, as fitted, float32, shape
            (M, K).
    """

    head: LinearHead
    penalty: float
    held_out_loss: float
    held_out_accuracy: float
    held_out_rows: NDArray[np.int64]
    held_out_probabilities: Tensor


def fit_head(
    views: Sequence[FeatureArray],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    num_classes: int,
    logit_offset: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> CrossValidatedHead:
    """Fit a head to all views of some images, with the penalty that cross-validation chooses.

    All views of an image stay together, and the first alone is what is measured. Five folds, class
    by class; of more than 20,000 images one of the five is left out once.

    An offset is added to the logits in the loss and is no part of the head: with the log of the
    classes' shares the head's own logits are those for classes of equal size (Menon et al. 2021,
    eq. 10, https://arxiv.org/abs/2007.07314). As the bias has no penalty, such a head is the one
    fitted without, less the offset; so are those of the folds. The loss of the images left out,
    which decides, is that of the fit; their accuracy is that of the head's own logits.

    Args:
        views: Features of each image, (N, D) for each view; the first is that of evaluation.
        labels: Class indices, shape (N,).
        weights: Of each image in the mean loss, shape (N,).
        num_classes: K.
        logit_offset: Added to the logits in the loss alone, shape (K,); None adds nothing.
        penalties: To choose from, the largest first.
    """
    added = torch.zeros(num_classes) if logit_offset is None else logit_offset.float()
    folds = assign_stratified_folds(labels, _NUM_FOLDS)
    used = _NUM_FOLDS if len(labels) <= _MAX_IMAGES_FOR_ALL_FOLDS else 1
    rows = np.flatnonzero(folds < used)
    tried: dict[float, tuple[float, float]] = {}
    without = np.stack([weights * (folds != fold) for fold in range(used)])
    fitter = _create_fitter(views, labels, without, num_classes, tolerance=_SEARCH_TOLERANCE)
    for penalty in penalties:
        heads = fitter.fit(penalty)
        logits = _compute_held_out_logits(heads, views[0], folds, rows)
        tried[penalty] = _compute_loss_and_accuracy(
            logits, labels[rows], weights[rows], logit_offset=added
        )
        best = min(tried, key=lambda tried_one: tried[tried_one][0])
        if best == penalty:
            held_out = logits
        if len(tried) - list(tried).index(best) > _PATIENCE:
            break
    whole = _create_fitter(views, labels, weights[None], num_classes, tolerance=_FINAL_TOLERANCE)
    for penalty in tried:  # along the same path, which is quicker than from nothing
        (head,) = whole.fit(penalty)
        if penalty == best:
            break
    loss, accuracy = tried[best]
    head = LinearHead(head.weight, head.bias - added)
    return CrossValidatedHead(head, best, loss, accuracy, rows, held_out.softmax(dim=1))


def assign_stratified_folds(labels: NDArray[np.int64], num_folds: int) -> NDArray[np.int64]:
    """Return the fold of each image, shape (N,), dealt out class by class; nothing is drawn."""
    order = np.argsort(labels, kind="stable")
    folds = np.empty(len(order), np.int64)
    folds[order] = np.arange(len(order)) % num_folds
    return folds


class _ConcatenatedViews:
    """All views of all images as one table, view after view."""

    def __init__(self, views: Sequence[FeatureArray]) -> None:
        self.views = views
        self.num_rows, columns = views[0].shape
        self.shape = (len(views) * self.num_rows, columns)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        first, last, _ = rows.indices(self.shape[0])
        parts = []
        while first < last:
            view, row = divmod(first, self.num_rows)
            count = min(last - first, self.num_rows - row)
            parts.append(self.views[view][row : row + count])
            first += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _create_fitter(
    views: Sequence[FeatureArray],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    num_classes: int,
    *,
    tolerance: float,
) -> HeadFitter:
    """Return what fits a head to each row of weights (H, N), which all views of an image share."""
    repeats = len(views)
    table = LogisticProblem(
        _ConcatenatedViews(views),
        np.tile(labels, repeats),
        np.tile(weights, (1, repeats)),
        num_classes,
    )
    return HeadFitter(table, tolerance=tolerance)


def _compute_held_out_logits(
    heads: Sequence[LinearHead],
    features: FeatureArray,
    folds: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Tensor:
    """Return the logits of some images, ascending, each by the head without its fold, (M, K)."""
    logits = torch.empty(len(rows), len(heads[0].bias))
    for first in range(0, len(folds), _CHUNK_ROWS):
        part = torch.from_numpy(features[first : first + _CHUNK_ROWS])
        begin, end = np.searchsorted(rows, (first, first + _CHUNK_ROWS)).tolist()
        here = rows[begin:end]
        for fold, head in enumerate(heads):
            mine = np.flatnonzero(folds[here] == fold)
            answers = part[torch.from_numpy(here[mine] - first)] @ head.weight.T + head.bias
            logits[torch.from_numpy(begin + mine)] = answers
    return logits


def _compute_loss_and_accuracy(
    logits: Tensor, labels: NDArray[np.int64], weights: NDArray[np.float64], *, logit_offset: Tensor
) -> tuple[float, float]:
    """Return weighted loss and accuracy of images that were left out.

    The logits (M, K) are as they were fitted, and ``logit_offset`` is what a head predicts without.
    """
    target, share = torch.from_numpy(labels), torch.from_numpy(weights).float()
    loss = -float(logits.log_softmax(dim=1).gather(1, target[:, None])[:, 0] @ share)
    right = float(((logits - logit_offset).argmax(dim=1) == target).float() @ share)
    total = max(float(share.sum()), 1e-12)
    return loss / total, right / total
