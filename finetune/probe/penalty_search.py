"""Choice of the L2 penalty of linear heads by the loss of images of other folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.probe.logistic import (
    FeatureArray,
    HeadFitter,
    LinearHead,
    LogisticProblem,
    Targets,
)
from finetune.probe.multi_label.binary_regression import score_label_logits

PENALTIES = tuple(10.0 ** (-step / 2) for step in range(2, 13))
"""L2 penalties from 0.1 to 1e-6, for features of norm 1."""

CHUNK_ROWS = 8192
"""Rows that are read at a time for held-out logits."""

SEARCH_TOLERANCE = 1e-4
_PATIENCE = 2


@dataclass(frozen=True, slots=True)
class HeldOutImages:
    """Images that heads are fitted on, and on some of which those of other folds are judged.

    Attributes:
        features: Features of all images, (N, D).
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, (N, K).
        weights: Weight of each image in the mean loss, shape (N,).
        folds: Fold of each image, shape (N,).
        rows: Rows of the images that are judged, ascending, shape (M,).
        positive_weights: Factor of the loss of images with each label, shape (K,); None for 1.
    """

    features: FeatureArray
    labels: Targets
    weights: NDArray[np.float64]
    folds: NDArray[np.int64]
    rows: NDArray[np.int64]
    positive_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Result of the heads of all folds at the penalty of the least held-out loss.

    Attributes:
        penalty: The L2 penalty.
        loss: Weighted mean loss of the held-out images.
        accuracy: Their weighted accuracy.
        logits: Their logits, each by the head of the other folds, shape (M, K).
    """

    penalty: float
    loss: float
    accuracy: float
    logits: Tensor


def score_features(images: HeldOutImages, *, num_folds: int, logit_offset: Tensor) -> HeldOutScore:
    """Return how well heads on some features classify images of other folds.

    Args:
        images: Images, with folds 0 to ``num_folds`` - 1.
        num_folds: Number of folds, each held out in turn.
        logit_offset: Offset of the logits in the loss, which the accuracy is without, shape (K,).
    """
    num_classes = len(logit_offset)
    folds, weights = images.folds, images.weights
    fold_weights = np.stack([weights * (folds != fold) for fold in range(num_folds)])
    fitter = create_fitter(
        [images.features], images.labels, fold_weights, num_classes, tolerance=SEARCH_TOLERANCE
    )
    return search_penalty(
        fitter, images, PENALTIES, logit_offset=logit_offset, chunk_rows=CHUNK_ROWS
    )


def search_penalty(
    fitter: HeadFitter,
    images: HeldOutImages,
    penalties: Sequence[float],
    *,
    logit_offset: Tensor,
    chunk_rows: int,
) -> HeldOutScore:
    """Return the result at the penalty of the least loss; smaller ones are not tried in vain."""
    labels, weights = images.labels[images.rows], images.weights[images.rows]
    best: HeldOutScore | None = None
    num_worse = 0
    for penalty in penalties:
        logits = _compute_held_out_logits(
            fitter.fit(penalty), images.features, images.folds, images.rows, chunk_rows=chunk_rows
        )
        if labels.ndim == 2:
            loss, accuracy = score_label_logits(
                logits,
                torch.from_numpy(labels),
                torch.from_numpy(weights).float(),
                images.positive_weights,
            )
        else:
            loss, accuracy = _compute_loss_and_accuracy(
                logits, labels, weights, logit_offset=logit_offset
            )
        num_worse += 1
        if best is None or loss < best.loss:
            best, num_worse = HeldOutScore(penalty, loss, accuracy, logits), 0
        if num_worse >= _PATIENCE:
            break
    assert best is not None, "there are penalties"
    return best


class _ConcatenatedViews:
    """Feature array of all views of all images, view after view."""

    def __init__(self, views: Sequence[FeatureArray]) -> None:
        self.views = views
        self.num_rows, columns = views[0].shape
        self.shape = (len(views) * self.num_rows, columns)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        first, last, _ = rows.indices(self.shape[0])
        chunks = []
        while first < last:
            view, row = divmod(first, self.num_rows)
            count = min(last - first, self.num_rows - row)
            chunks.append(self.views[view][row : row + count])
            first += count
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def create_fitter(
    views: Sequence[FeatureArray],
    labels: Targets,
    weights: NDArray[np.float64],
    num_classes: int,
    *,
    tolerance: float,
    scaled_like: HeadFitter | None = None,
    positive_weights: Tensor | None = None,
) -> HeadFitter:
    """Return a fitter of one head for each row of weights (H, N), shared by an image's views."""
    num_views = len(views)
    problem = LogisticProblem(
        _ConcatenatedViews(views),
        np.concatenate([labels] * num_views),
        np.tile(weights, (1, num_views)),
        num_classes,
        positive_weights,
    )
    return HeadFitter(problem, tolerance=tolerance, scaled_like=scaled_like)


def _compute_held_out_logits(
    heads: Sequence[LinearHead],
    features: FeatureArray,
    folds: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    chunk_rows: int,
) -> Tensor:
    """Return the logits of ascending rows, each by the head of the other folds, shape (M, K)."""
    logits = torch.empty(len(rows), len(heads[0].bias))
    for first in range(0, len(folds), chunk_rows):
        chunk = torch.from_numpy(features[first : first + chunk_rows])
        begin, end = np.searchsorted(rows, (first, first + chunk_rows)).tolist()
        rows_in_chunk = rows[begin:end]
        for fold, head in enumerate(heads):
            in_fold = np.flatnonzero(folds[rows_in_chunk] == fold)
            fold_features = chunk[torch.from_numpy(rows_in_chunk[in_fold] - first)]
            logits[torch.from_numpy(begin + in_fold)] = fold_features @ head.weight.T + head.bias
    return logits


def _compute_loss_and_accuracy(
    logits: Tensor, labels: Targets, weights: NDArray[np.float64], *, logit_offset: Tensor
) -> tuple[float, float]:
    """Return the weighted loss of logits (M, K), and the accuracy of those less the offset."""
    target, sample_weights = torch.from_numpy(labels), torch.from_numpy(weights).float()
    loss = -float(logits.log_softmax(dim=1).gather(1, target[:, None])[:, 0] @ sample_weights)
    is_correct = (logits - logit_offset).argmax(dim=1) == target
    num_correct = float(is_correct.float() @ sample_weights)
    total = max(float(sample_weights.sum()), 1e-12)
    return loss / total, num_correct / total
