"""Linear probe of a run: a head fitted on the features of the frozen backbone.

Frozen features do not change, so they are extracted once, and the head is fitted on them to
convergence. The probe is a complete linear evaluation, and it is the initial head of fine-tuning
and the baseline to beat (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.distributed.collectives import broadcast_weights
from finetune.distributed.rendezvous import Rendezvous
from finetune.evaluation.validation import compute_validation_metrics
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.models.head import set_head
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.features.feature_store import StoredFeatures
from finetune.probe.features.views import ViewSpec
from finetune.probe.last_stage import (
    CachedActivations,
    LastStagePlan,
    LastStageResult,
    fit_last_stage,
)
from finetune.probe.stage_probes import StageProbes, probe_stages
from finetune.types import Reporter

GroupFinder = Callable[[Sequence[StoredFeatures]], NDArray[np.int64]]
"""Function from the features of the training images and of the validation images to the groups of
the training images, in the form of ``encode_groups``."""


@dataclass(frozen=True, slots=True)
class ProbeImages:
    """Images of one split.

    Attributes:
        paths: Image files, shape (N,).
        labels: Class indices, shape (N,).
        weights: Weight of each image in the mean loss, shape (N,).
        groups: Groups that a cross-validation keeps in one fold, in the form of ``encode_groups``,
            shape (N,); None for none.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64] | None = None


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
    """

    train: ProbeImages
    val: ProbeImages
    classes: tuple[str, ...]
    views: ViewSpec
    extraction: ExtractionPlan
    logit_offset: Tensor | None = None
    eval_logit_shift: Tensor | None = None
    last_stage: LastStagePlan | None = None


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

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "metrics": _to_floats(self.metrics),
            "train_loss": self.train_loss,
            "l2_penalty": self.cv_head.penalty,
            "cross_validated_accuracy": self.cv_head.held_out_accuracy,
            "cross_validated_loss": self.cv_head.held_out_loss,
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


def fit_probe(
    classifier: ImageClassifier,
    plan: ProbePlan,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
    find_groups: GroupFinder | None = None,
) -> ProbeResult | None:
    """Fit the head of a network on features of its backbone, in place, on rank 0.

    With a plan for the last stage, that is trained next, and keeps its weights where the head alone
    is better on the validation images. All ranks of the process group call it and split the feature
    extraction; rank 0 alone writes and fits.

    Args:
        classifier: Classifier whose head is fitted; it is left on the device.
        plan: Images and settings.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.
        find_groups: Function that finds the groups of the cross-validation with the features, on
            rank 0 alone; None for those of the plan.

    Returns:
        The result on rank 0; None on the others.

    Raises:
        DataError: A file can no longer be read as before.
        StorageError: The disk is full or fails, or the activations exceed the cache limit.
        StopRequest: A rank received a stop signal.
        TrainingError: The features are not finite, or memory does not suffice.
    """
    start = time.monotonic()
    classifier.to(device)
    if rendezvous is not None:
        broadcast_weights(classifier)
    depth = 1 if plan.last_stage is None else plan.last_stage.depth
    with eval_mode(classifier):
        cached_extractor = CachedFeatureExtractor(
            create_feature_extractor(
                classifier.network, depth=depth, with_stages=plan.extraction.with_stages
            ),
            plan.extraction,
            device=device,
            rendezvous=rendezvous,
            reporter=reporter,
        )
        train_outputs = cached_extractor.extract(plan.train.paths, plan.views)
        val_outputs = cached_extractor.extract(plan.val.paths)
        if rendezvous is not None and rendezvous.launch.rank > 0:
            return None
        train_views, val_features = train_outputs[0], val_outputs[0][0]
        features = (train_views[0], val_features)
        cv_head = fit_head(
            train_views,
            plan.train.labels,
            plan.train.weights,
            num_classes=len(plan.classes),
            groups=plan.train.groups if find_groups is None else find_groups(features),
            logit_offset=plan.logit_offset,
        )
        stages = probe_stages(
            cached_extractor,
            train_outputs,
            plan.train.labels,
            plan.train.weights,
            cv_head=cv_head,
            last_name=classifier.groups[1].name,
        )
        head = cv_head.head
        set_head(cached_extractor.extractor.head, weight=head.weight, bias=head.bias)
        val_logits = head.compute_logits(val_features)
        best = head_result = LastStageResult(
            num_epochs=0,
            train_loss=_compute_mean_loss(head.compute_logits(train_views[0]), plan),
            probabilities=val_logits.softmax(dim=1),
        )
        if plan.last_stage is not None:
            best = fit_last_stage(
                classifier,
                plan.last_stage,
                CachedActivations(
                    cached_extractor.extractor,
                    cached_extractor.activation_layout,
                    train_outputs[1],
                    val_outputs[1][0],
                    plan.train.labels,
                    plan.train.weights,
                    plan.logit_offset,
                ),
                partial(_compute_metrics, plan=plan),
                head_result=head_result,
                device=device,
                rendezvous=rendezvous,
                reporter=reporter,
            )
    num_train, num_val = len(plan.train.labels), len(plan.val.labels)
    val_probabilities = _compute_offset_probabilities(val_logits, plan)
    predictions = _shift_probabilities(best.probabilities, plan).argmax(dim=1).numpy()
    return ProbeResult(
        features=features,
        cv_head=cv_head,
        train_loss=best.train_loss,
        metrics=_compute_metrics(best.probabilities, plan),
        held_out_rows=np.concatenate([cv_head.held_out_rows, num_train + np.arange(num_val)]),
        held_out_probabilities=torch.cat([cv_head.held_out_probabilities, val_probabilities]),
        is_correct=predictions == plan.val.labels,
        last_stage_epochs=None if plan.last_stage is None else best.num_epochs,
        head_metrics=_compute_metrics(head_result.probabilities, plan),
        stages=stages,
        seconds=time.monotonic() - start,
        num_images=num_train + num_val,
        num_computed=cached_extractor.num_computed,
    )


def _compute_metrics(probabilities: Tensor, plan: ProbePlan) -> Mapping[str, float]:
    """Return the metrics of the validation images from their class probabilities (N, K)."""
    targets = torch.from_numpy(plan.val.labels)
    train_counts = np.bincount(plan.train.labels, minlength=len(plan.classes)).tolist()
    return compute_validation_metrics(
        _shift_probabilities(probabilities, plan),
        targets,
        classes=plan.classes,
        train_counts=train_counts,
        logit_shift=plan.eval_logit_shift,
    )


def _compute_offset_probabilities(logits: Tensor, plan: ProbePlan) -> Tensor:
    """Return the class probabilities of logits (N, K) with the logit offset of the fit."""
    return (logits if plan.logit_offset is None else logits + plan.logit_offset).softmax(dim=1)


def _shift_probabilities(probabilities: Tensor, plan: ProbePlan) -> Tensor:
    """Return probabilities (N, K) after the plan's shift of their logits."""
    if plan.eval_logit_shift is None:
        return probabilities
    return (
        probabilities.clamp_min(torch.finfo(torch.float32).tiny).log() + plan.eval_logit_shift
    ).softmax(1)


def _compute_mean_loss(logits: Tensor, plan: ProbePlan) -> float:
    """Return the weighted mean loss of the training images from their logits (N, K)."""
    images = plan.train
    labels = torch.from_numpy(images.labels)
    sample_weights = torch.from_numpy(images.weights / images.weights.sum()).float()
    if plan.logit_offset is not None:
        logits = logits + plan.logit_offset
    return -float(logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0] @ sample_weights)


def _to_floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
