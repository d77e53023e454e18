"""The probe of a run: a head fitted to what the frozen backbone says of the images.

A backbone that does not move says the same of an image in every epoch. It is asked once, and the
head is fitted to the answers until nothing improves: the whole of a linear probe, and what
fine-tuning begins with and must beat (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.bundle.model_card import CARD_KEY
from finetune.distributed.rendezvous import Rendezvous
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.models.classifier import ImageClassifier
from finetune.models.eval_mode import eval_mode
from finetune.models.graph_split import split_last_groups
from finetune.models.head import find_linear_head, set_head
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.probe.extraction import CachedFeatureExtractor, ExtractionPlan
from finetune.probe.extractor import FeatureExtractor
from finetune.probe.feature_store import StoredFeatures, ViewSpec
from finetune.probe.last_stage import (
    CachedActivations,
    LastStagePlan,
    LastStageResult,
    fit_last_stage,
)
from finetune.system.files import write_file_atomically
from finetune.types import Reporter

PROBE_KEY = "probe"
"""Where a checkpoint of the probe says what came of it."""


@dataclass(frozen=True, slots=True)
class ProbeImages:
    """Images of one split.

    Attributes:
        paths: Files, shape (N,).
        labels: Class indices, shape (N,).
        weights: Of each image in the mean loss, shape (N,).
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How the probe of a run is made.

    Attributes:
        train: What the head is fitted to.
        val: What it is measured on.
        classes: Names in index order.
        views: What the head sees of each training image.
        extraction: How the backbone is asked.
        logit_offset: Added to the logits in the fit alone, shape (K,); None adds nothing.
        eval_logit_shift: Added to the logits of validation images, shape (K,); None adds nothing.
        last_stage: How more than the head is trained; None for the head alone.
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
    """What came of it.

    Attributes:
        features: Of the training images and of the validation images, as evaluation sees them.
        cv_head: The head, and how it was chosen.
        train_loss: Weighted mean loss of the training images.
        metrics: Of the validation images, by name.
        held_out_rows: Rows of the images that a head judged without having seen them, of the training
            images and, after them, the validation images, ascending, shape (M,).
        held_out_probabilities: Their class probabilities, as fitted, float32, shape (M, K).
        is_correct: Whether each validation image comes out right, shape (N,).
        last_stage_passes: Passes over kept maps after which the last layers were best; 0 where the head
            alone was, None where nothing else was trained.
        head_metrics: Of the validation images by the head alone.
        seconds: All of it.
        num_images: Of training and validation.
        num_computed: Of these, those that the backbone had to be asked about.
    """

    features: tuple[StoredFeatures, StoredFeatures]
    cv_head: CrossValidatedHead
    train_loss: float
    metrics: Mapping[str, float]
    held_out_rows: NDArray[np.int64]
    held_out_probabilities: Tensor
    is_correct: NDArray[np.bool_]
    last_stage_passes: int | None
    head_metrics: Mapping[str, float]
    seconds: float
    num_images: int
    num_computed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "metrics": _to_floats(self.metrics),
            "train_loss": self.train_loss,
            "penalty": self.cv_head.penalty,
            "cross_validated_accuracy": self.cv_head.held_out_accuracy,
            "cross_validated_loss": self.cv_head.held_out_loss,
            "last_stage_epochs": self.last_stage_passes,
            "head_metrics": _to_floats(self.head_metrics),
            "images": self.num_images,
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
) -> ProbeResult | None:
    """Fit the head of a network to features of its backbone, and put it there, on rank 0.

    Where the plan goes deeper, the last layers are trained after it, and stay as they were where
    that does not beat the head alone on validation. All ranks of the process group call it and
    share the images; rank 0 alone writes and fits.

    Args:
        classifier: Whose head is fitted; it is left on the device.
        plan: Images and ways.
        device: Of this rank.
        rendezvous: The ranks; None for one alone.
        reporter: Told of the progress.

    Returns:
        What came of it, on rank 0; None on the others.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails, or the maps find no room.
        StopRequest: A rank was asked to stop.
        TrainingError: The features are no numbers, or the memory does not suffice.
    """
    start = time.monotonic()
    classifier.to(device)
    if rendezvous is not None:
        broadcast_weights(classifier)
    with eval_mode(classifier):
        answers = create_feature_extractor(classifier.network, plan.last_stage)
        features = CachedFeatureExtractor(
            answers, plan.extraction, device=device, rendezvous=rendezvous, reporter=reporter
        )
        train = features.extract(plan.train.paths, plan.views)
        val = features.extract(plan.val.paths)
        if rendezvous is not None and rendezvous.launch.rank > 0:
            return None
        labels, weights = plan.train.labels, plan.train.weights
        fitted = fit_head(
            train[0], labels, weights, num_classes=len(plan.classes), logit_offset=plan.logit_offset
        )
        set_head(answers.head, weight=fitted.head.weight, bias=fitted.head.bias)
        best = alone = LastStageResult(
            num_passes=0,
            train_loss=_compute_mean_loss(fitted.head.compute_logits(train[0][0]), plan),
            probabilities=fitted.head.compute_logits(val[0][0]).softmax(dim=1),
        )
        if plan.last_stage is not None:
            best = fit_last_stage(
                classifier,
                plan.last_stage,
                CachedActivations(
                    answers,
                    features.activation_layout,
                    train[1],
                    val[1][0],
                    labels,
                    weights,
                    plan.logit_offset,
                ),
                partial(_compute_metrics, plan=plan),
                head_result=alone,
                device=device,
                rendezvous=rendezvous,
                reporter=reporter,
            )
    return ProbeResult(
        features=(train[0][0], val[0][0]),
        cv_head=fitted,
        train_loss=best.train_loss,
        metrics=_compute_metrics(best.probabilities, plan),
        held_out_rows=np.concatenate(
            [fitted.held_out_rows, len(labels) + np.arange(len(plan.val.labels))]
        ),
        held_out_probabilities=torch.cat(
            [
                fitted.held_out_probabilities,
                _compute_training_probabilities(fitted.head.compute_logits(val[0][0]), plan),
            ]
        ),
        is_correct=(
            _shift_probabilities(best.probabilities, plan).argmax(dim=1).numpy() == plan.val.labels
        ),
        last_stage_passes=None if plan.last_stage is None else best.num_passes,
        head_metrics=_compute_metrics(alone.probabilities, plan),
        seconds=time.monotonic() - start,
        num_images=len(plan.train.paths) + len(plan.val.paths),
        num_computed=features.num_computed,
    )


def create_feature_extractor(
    network: nn.Module, last_stage: LastStagePlan | None
) -> FeatureExtractor:
    """Return what asks a network, for its head alone or with the maps that a tail learns from."""
    head = find_linear_head(network)
    assert head is not None, "looked for by who plans"
    return FeatureExtractor(
        network, head, None if last_stage is None else split_last_groups(network, last_stage.depth)
    )


def _compute_metrics(probabilities: Tensor, plan: ProbePlan) -> Mapping[str, float]:
    """Return the metrics of the validation images by their class probabilities (N, K)."""
    of_val = torch.from_numpy(plan.val.labels)
    counts = np.bincount(plan.train.labels, minlength=len(plan.classes)).tolist()
    return evaluate_probabilities(
        _shift_probabilities(probabilities, plan), of_val, classes=plan.classes, train_counts=counts
    ).metrics


def _compute_training_probabilities(logits: Tensor, plan: ProbePlan) -> Tensor:
    """Return class probabilities with what the loss of the fit adds to logits (N, K)."""
    return (logits if plan.logit_offset is None else logits + plan.logit_offset).softmax(dim=1)


def _shift_probabilities(probabilities: Tensor, plan: ProbePlan) -> Tensor:
    """Return probabilities (N, K) as of logits that the plan's shift was added to."""
    if plan.eval_logit_shift is None:
        return probabilities
    return (
        probabilities.clamp_min(torch.finfo(torch.float32).tiny).log() + plan.eval_logit_shift
    ).softmax(1)


def _to_floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def broadcast_weights(classifier: ImageClassifier) -> None:
    """Give all ranks the parameters and buffers that rank 0 alone has read."""
    for tensor in classifier.state_dict().values():
        dist.broadcast(tensor, src=0)


def save_probe(module: nn.Module, card: Mapping[str, Any], result: ProbeResult, file: Path) -> None:
    """Write a network that ends in a fitted head as the best model so far.

    Raises:
        StorageError: The disk is full or fails.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    checkpoint = {"state_dict": state, CARD_KEY: card, PROBE_KEY: result.to_json()}
    with write_file_atomically(file) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)


def is_probe_checkpoint(file: Path) -> bool:
    """Tell whether a checkpoint was written by ``save_probe``."""
    return PROBE_KEY in torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _compute_mean_loss(logits: Tensor, plan: ProbePlan) -> float:
    images = plan.train
    labels = torch.from_numpy(images.labels)
    share = torch.from_numpy(images.weights / images.weights.sum()).float()
    if plan.logit_offset is not None:
        logits = logits + plan.logit_offset
    return -float(logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0] @ share)
