"""Linear probes on earlier stages of the backbone, beside that on its last features.

The first layers of a network are general and the last ones specific to what it was trained on
(Yosinski et al. 2014, https://arxiv.org/abs/1411.1792). Where images are like those, heads on the
last features are far better than heads on earlier ones; where they are not, earlier ones come close
or are better. All heads are judged on images of other folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.models.stage_outputs import Stage
from finetune.probe.cross_validation import CrossValidatedHead
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.invariance import sample_rows
from finetune.probe.logistic import FeatureArray
from finetune.probe.penalty_search import HeldOutImages, score_features

_CHUNK_ROWS = 8192

MAX_STAGE_IMAGES = 5_000
"""Training images that heads on stages are fitted on; of more, as many of each class."""


@dataclass(frozen=True, slots=True)
class StageScore:
    """Held-out result of a linear head on the output of a stage.

    Attributes:
        name: Last layer group of the stage.
        depth: Number of layer groups after it, the head one of them.
        num_features: Number of its features: means over positions, or the head's input.
        loss: Weighted log loss of the training images, each by a head of other folds.
        accuracy: Their weighted accuracy.
    """

    name: str
    depth: int
    num_features: int
    loss: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "depth": self.depth,
            "num_features": self.num_features,
            "cross_validated_loss": self.loss,
            "cross_validated_accuracy": self.accuracy,
        }


@dataclass(frozen=True, slots=True)
class StageProbes:
    """Results of heads on the last features and on those of earlier stages, on the same images.

    Attributes:
        scores: Result of each stage, from the last features to the stem.
        num_images: Number of training images.
        loss_standard_error: Standard error of ``loss_difference``, from the differences of the
            images' losses; None with fewer than two held-out images.
        num_probe_views: Number of views of each image that the probe is fitted to; heads on stages
            are fitted to one.
    """

    scores: tuple[StageScore, ...]
    num_images: int
    loss_standard_error: float | None = None
    num_probe_views: int = 1

    @property
    def last(self) -> StageScore:
        """Result on the last features."""
        return self.scores[0]

    @property
    def best_earlier(self) -> StageScore:
        """Result on the earlier stage with the lowest log loss."""
        return min(self.scores[1:], key=lambda score: score.loss)

    @property
    def accuracy_lead(self) -> float:
        """Accuracy of the last features less that of the best earlier stage."""
        return self.last.accuracy - self.best_earlier.accuracy

    @property
    def loss_ratio(self) -> float:
        """Log loss of the last features divided by that of the best earlier stage."""
        return self.last.loss / max(self.best_earlier.loss, 1e-12)

    @property
    def loss_difference(self) -> float:
        """Log loss of the last features less that of the best earlier stage."""
        return self.last.loss - self.best_earlier.loss

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": self.num_images,
            "num_probe_views": self.num_probe_views,
            "scores": [score.to_json() for score in self.scores],
            "best_earlier": self.best_earlier.name,
            "accuracy_lead": self.accuracy_lead,
            "loss_ratio": self.loss_ratio,
            "loss_difference": self.loss_difference,
            "loss_difference_standard_error": self.loss_standard_error,
        }


def probe_stages(
    cached_extractor: CachedFeatureExtractor,
    outputs: Sequence[Sequence[FeatureArray]],
    targets: NDArray[np.int64] | NDArray[np.float32],
    weights: NDArray[np.float64],
    *,
    cv_head: CrossValidatedHead,
    last_name: str,
    logit_offset: Tensor | None = None,
    max_images: int = MAX_STAGE_IMAGES,
) -> StageProbes | None:
    """Fit heads on the last features and on each earlier stage, with the folds of the probe.

    Args:
        cached_extractor: Extractor of the features.
        outputs: Its outputs for the training images.
        targets: Class indices, shape (N,); multi-hot labels (N, K) are not supported.
        weights: Weight of each image in the mean loss, shape (N,).
        cv_head: Head of the probe, with its folds.
        last_name: Last layer group of the backbone.
        logit_offset: Offset of the logits in the loss of the probe, shape (K,); None for none.
        max_images: Number of images above which a sample is used.

    Returns:
        The results; None where no stages were extracted, and for multi-hot labels.
    """
    if not cached_extractor.stage_widths or targets.ndim > 1:
        return None
    labels = targets.astype(np.int64)
    last, means = outputs[0][0], outputs[-1][0]
    num_classes = len(cv_head.head.bias)
    rows = np.arange(len(labels))
    if len(labels) > max_images:
        rows = sample_rows(labels, max_images, seed=0)
    is_judged = np.zeros(len(labels), bool)
    is_judged[cv_head.held_out_rows] = True
    # with a single held-out fold, rows of the others are judged here as well
    is_judged |= cv_head.folds >= cv_head.num_held_out_folds
    judged = np.flatnonzero(is_judged[rows])

    losses: list[NDArray[np.float64]] = []
    offset = torch.zeros(num_classes) if logit_offset is None else logit_offset.float()

    def score(features: NDArray[np.float32], stage: Stage) -> StageScore:
        images = HeldOutImages(features, labels[rows], weights[rows], cv_head.folds[rows], judged)
        found = score_features(images, num_folds=cv_head.num_folds, logit_offset=offset)
        target = torch.from_numpy(labels[rows][judged])
        loss = torch.nn.functional.cross_entropy(found.logits.double(), target, reduction="none")
        losses.append(loss.numpy())
        return StageScore(stage.name, stage.depth, features.shape[1], found.loss, found.accuracy)

    scores = [score(_read_rows(last, rows), Stage(last_name, 1, ""))]
    table, start = _read_rows(means, rows), 0
    extractor = cached_extractor.extractor
    for stage, width in zip(extractor.stages, cached_extractor.stage_widths, strict=True):
        scores.append(score(np.ascontiguousarray(table[:, start : start + width]), stage))
        start += width
    best = 1 + int(np.argmin([score.loss for score in scores[1:]]))
    error = _compute_standard_error(losses[0] - losses[best], weights[rows][judged])
    return StageProbes(tuple(scores), len(rows), error, num_probe_views=len(outputs[0]))


def _compute_standard_error(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> float | None:
    """Return the standard error of a weighted mean; None for fewer than two values."""
    num_values = int(np.count_nonzero(weights))
    if num_values < 2:
        return None
    deviations = weights * (values - np.average(values, weights=weights))
    variance = float(np.square(deviations).sum()) * num_values / (num_values - 1)
    return float(variance**0.5 / weights.sum())


def _read_rows(features: FeatureArray, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return some rows of features as an array in memory."""
    chunks = [
        features[first : first + _CHUNK_ROWS][
            rows[(rows >= first) & (rows < first + _CHUNK_ROWS)] - first
        ]
        for first in range(0, features.shape[0], _CHUNK_ROWS)
    ]
    return np.concatenate(chunks)
