"""Plan and result of the linear probe of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.probe.cross_validation import CrossValidatedHead
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.feature_store import StoredFeatures
from finetune.probe.features.views import ViewSpec
from finetune.probe.last_stage import LastStagePlan
from finetune.probe.logistic import Targets
from finetune.probe.stage_probes import StageProbes


@dataclass(frozen=True, slots=True)
class ProbeImages:
    """Images of one split.

    Attributes:
        paths: Image files, shape (N,).
        labels: Class indices, shape (N,); of multi-label images the rarest label.
        weights: Weight of each image in the mean loss, shape (N,).
        groups: Groups that a cross-validation keeps in one fold, in the form of ``encode_groups``,
            shape (N,); None for none.
        multi_hot: 1 for each label of multi-label images, shape (N, K); None for images of one
            class.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64] | None = None
    multi_hot: NDArray[np.float32] | None = None

    @property
    def targets(self) -> Targets:
        """Class indices (N,), or 1 for each label (N, K)."""
        return self.labels if self.multi_hot is None else self.multi_hot


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """Plan of the probe of a run.

    Attributes:
        train: Images that the head is fitted on.
        val: Images that it is evaluated on.
        classes: Class names in index order.
        views: Views of each training image that the head is fitted on.
        extraction: Settings of the feature extraction.
        logit_offset: Offset of the logits in the fit alone, shape (K,); None for no offset.
        eval_logit_shift: Shift of the logits of validation images, shape (K,); None for no shift.
        last_stage: Plan to train more than the head; None for the head alone.
        positive_weights: Factor of the loss of multi-label images with each label, shape (K,); None
            for 1.
        head_max_norm: Largest norm of the head's weights of a class, to which the fitted head is
            scaled as a whole; None for any.
        train_eval_rows: Rows of the training images that are measured as validation images are,
            shape (M,); None for none.
    """

    train: ProbeImages
    val: ProbeImages
    classes: tuple[str, ...]
    views: ViewSpec
    extraction: ExtractionPlan
    logit_offset: Tensor | None = None
    eval_logit_shift: Tensor | None = None
    last_stage: LastStagePlan | None = None
    positive_weights: Tensor | None = None
    head_max_norm: float | None = None
    train_eval_rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of a probe.

    Attributes:
        features: Features of the training images and of the validation images, evaluation view.
        cv_head: The head and its cross-validation.
        train_loss: Weighted mean loss of the training images.
        metrics: Metrics of the validation images, by name.
        held_out_rows: Rows of the images that were evaluated by a head not fitted on them, in the
            training images followed by the validation images, ascending, shape (M,).
        held_out_probabilities: Their class probabilities with the logit offset of the fit, float32,
            shape (M, K).
        is_correct: Whether each validation image is classified correctly, shape (N,).
        last_stage_epochs: Epoch of the last stage's training whose weights were kept; 0 where the
            head alone was best, None where nothing else was trained.
        head_metrics: Metrics of the validation images by the head alone.
        stages: Heads on earlier stages of the backbone; None where they are not extracted.
        seconds: Duration of the whole probe.
        num_images: Number of training and validation images.
        num_computed: Number of these whose features were not stored yet.
        held_out_mean_average_precision: Of the out-of-fold probabilities of multi-label training
            images; None for images of one class.
        train_eval_metrics: Metrics of the training images of ``ProbePlan.train_eval_rows``, which
            the head was fitted on; empty if there are none.
    """

    features: tuple[StoredFeatures, StoredFeatures]
    cv_head: CrossValidatedHead
    train_loss: float
    metrics: Mapping[str, float]
    held_out_rows: NDArray[np.int64]
    held_out_probabilities: Tensor
    is_correct: NDArray[np.bool_]
    last_stage_epochs: int | None
    head_metrics: Mapping[str, float]
    stages: StageProbes | None
    seconds: float
    num_images: int
    num_computed: int
    held_out_mean_average_precision: float | None = None
    train_eval_metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "metrics": _to_floats(self.metrics),
            "train_loss": self.train_loss,
            "train_eval_metrics": _to_floats(self.train_eval_metrics),
            "l2_penalty": self.cv_head.penalty,
            "cross_validated_accuracy": self.cv_head.held_out_accuracy,
            "cross_validated_loss": self.cv_head.held_out_loss,
            **(
                {}
                if self.held_out_mean_average_precision is None
                else {
                    "cross_validated_mean_average_precision": self.held_out_mean_average_precision
                }
            ),
            "folds": {
                "num_folds": self.cv_head.num_folds,
                "num_held_out_folds": self.cv_head.num_held_out_folds,
                "num_groups": self.cv_head.num_groups,
                "num_held_out_images": len(self.cv_head.held_out_rows),
            },
            "last_stage_epochs": self.last_stage_epochs,
            "head_metrics": _to_floats(self.head_metrics),
            "stages": None if self.stages is None else self.stages.to_json(),
            "num_images": self.num_images,
            "num_train_images": self.num_images - len(self.is_correct),
            "num_images_computed": self.num_computed,
            "seconds": round(self.seconds, 3),
        }


def _to_floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
