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
from finetune.distributed.rendezvous import Meeting
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.models.classifier import ImageClassifier
from finetune.models.eval_mode import in_eval_mode
from finetune.models.graph_split import cut_last_groups
from finetune.models.head import linear_head, set_head
from finetune.probe.cross_validation import Fitted, fit_head
from finetune.probe.extraction import FeaturePlan, Features
from finetune.probe.extractor import Answers
from finetune.probe.feature_store import StoredFeatures, Views
from finetune.probe.last_stage import KeptMaps, Outcome, TailPlan, fit_tail
from finetune.system.files import atomic_file
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
        features: How the backbone is asked.
        offset: Added to the logits in the fit alone, shape (K,); None adds nothing.
        shift: Added to the logits of validation images, shape (K,); None adds nothing.
        tail: How more than the head is trained; None for the head alone.
    """

    train: ProbeImages
    val: ProbeImages
    classes: tuple[str, ...]
    views: Views
    features: FeaturePlan
    offset: Tensor | None = None
    shift: Tensor | None = None
    tail: TailPlan | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of it.

    Attributes:
        features: Of the training images and of the validation images, as evaluation sees them.
        fitted: The head, and how it was chosen.
        train_loss: Weighted mean loss of the training images.
        metrics: Of the validation images, by name.
        judged: Rows of the images that a head judged without having seen them, of the training
            images and, after them, the validation images, ascending, shape (M,).
        beliefs: Their class probabilities, as fitted, float32, shape (M, K).
        right: Whether each validation image comes out right, shape (N,).
        tail_passes: Passes over kept maps after which the last layers were best; 0 where the head
            alone was, None where nothing else was trained.
        head_metrics: Of the validation images by the head alone.
        seconds: All of it.
        num_images: Of training and validation.
        num_computed: Of these, those that the backbone had to be asked about.
    """

    features: tuple[StoredFeatures, StoredFeatures]
    fitted: Fitted
    train_loss: float
    metrics: Mapping[str, float]
    judged: NDArray[np.int64]
    beliefs: Tensor
    right: NDArray[np.bool_]
    tail_passes: int | None
    head_metrics: Mapping[str, float]
    seconds: float
    num_images: int
    num_computed: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "metrics": _plain(self.metrics),
            "train_loss": self.train_loss,
            "penalty": self.fitted.penalty,
            "held_out_accuracy": self.fitted.held_out_accuracy,
            "held_out_loss": self.fitted.held_out_loss,
            "tail_passes": self.tail_passes,
            "head_metrics": _plain(self.head_metrics),
            "images": self.num_images,
            "images_computed": self.num_computed,
            "seconds": round(self.seconds, 3),
        }


def fit_probe(
    classifier: ImageClassifier,
    plan: ProbePlan,
    *,
    device: torch.device,
    met: Meeting | None,
    reporter: Reporter,
) -> Probe | None:
    """Fit the head of a network to features of its backbone, and put it there, on rank 0.

    Where the plan goes deeper, the last layers are trained after it, and stay as they were where
    that does not beat the head alone on validation. All ranks of the process group call it and
    share the images; rank 0 alone writes and fits.

    Args:
        classifier: Whose head is fitted; it is left on the device.
        plan: Images and ways.
        device: Of this rank.
        met: The ranks; None for one alone.
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
    if met is not None:
        with_weights_of_rank_0(classifier)
    with in_eval_mode(classifier):
        answers = answers_of(classifier.network, plan.tail)
        features = Features(answers, plan.features, device=device, met=met, reporter=reporter)
        train = features.of(plan.train.paths, plan.views)
        val = features.of(plan.val.paths)
        if met is not None and met.launch.rank > 0:
            return None
        labels, weights = plan.train.labels, plan.train.weights
        fitted = fit_head(
            train[0], labels, weights, num_classes=len(plan.classes), offset=plan.offset
        )
        set_head(answers.head, weight=fitted.head.weight, bias=fitted.head.bias)
        best = alone = Outcome(
            passes=0,
            train_loss=_mean_loss(fitted.head.logits(train[0][0]), plan),
            probabilities=fitted.head.logits(val[0][0]).softmax(dim=1),
        )
        if plan.tail is not None:
            best = fit_tail(
                classifier,
                plan.tail,
                KeptMaps(
                    answers, features.map_form, train[1], val[1][0], labels, weights, plan.offset
                ),
                partial(_metrics, plan=plan),
                alone=alone,
                device=device,
                met=met,
                reporter=reporter,
            )
    return Probe(
        features=(train[0][0], val[0][0]),
        fitted=fitted,
        train_loss=best.train_loss,
        metrics=_metrics(best.probabilities, plan),
        judged=np.concatenate(
            [fitted.held_out_rows, len(labels) + np.arange(len(plan.val.labels))]
        ),
        beliefs=torch.cat([fitted.held_out, _as_fitted(fitted.head.logits(val[0][0]), plan)]),
        right=(_shifted(best.probabilities, plan).argmax(dim=1).numpy() == plan.val.labels),
        tail_passes=None if plan.tail is None else best.passes,
        head_metrics=_metrics(alone.probabilities, plan),
        seconds=time.monotonic() - start,
        num_images=len(plan.train.paths) + len(plan.val.paths),
        num_computed=features.num_computed,
    )


def answers_of(network: nn.Module, tail: TailPlan | None) -> Answers:
    """Return what asks a network, for its head alone or with the maps that a tail learns from."""
    head = linear_head(network)
    assert head is not None, "looked for by who plans"
    return Answers(network, head, None if tail is None else cut_last_groups(network, tail.depth))


def _metrics(probabilities: Tensor, plan: ProbePlan) -> Mapping[str, float]:
    """Return the metrics of the validation images by their class probabilities (N, K)."""
    of_val = torch.from_numpy(plan.val.labels)
    counts = np.bincount(plan.train.labels, minlength=len(plan.classes)).tolist()
    return evaluate_probabilities(
        _shifted(probabilities, plan), of_val, classes=plan.classes, train_counts=counts
    ).metrics


def _as_fitted(logits: Tensor, plan: ProbePlan) -> Tensor:
    """Return class probabilities with what the loss of the fit adds to logits (N, K)."""
    return (logits if plan.offset is None else logits + plan.offset).softmax(dim=1)


def _shifted(probabilities: Tensor, plan: ProbePlan) -> Tensor:
    """Return probabilities (N, K) as of logits that the plan's shift was added to."""
    if plan.shift is None:
        return probabilities
    return (probabilities.clamp_min(torch.finfo(torch.float32).tiny).log() + plan.shift).softmax(1)


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def with_weights_of_rank_0(classifier: ImageClassifier) -> None:
    """Give all ranks the parameters and buffers that rank 0 alone has read."""
    for tensor in classifier.state_dict().values():
        dist.broadcast(tensor, src=0)


def save_probe(module: nn.Module, card: Mapping[str, Any], found: Probe, file: Path) -> None:
    """Write a network that ends in a fitted head as the best model so far.

    Raises:
        StorageError: The disk is full or fails.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    checkpoint = {"state_dict": state, CARD_KEY: card, PROBE_KEY: found.as_json()}
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)


def is_probe(file: Path) -> bool:
    """Tell whether a checkpoint was written by ``save_probe``."""
    return PROBE_KEY in torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _mean_loss(logits: Tensor, plan: ProbePlan) -> float:
    images = plan.train
    labels = torch.from_numpy(images.labels)
    share = torch.from_numpy(images.weights / images.weights.sum()).float()
    if plan.offset is not None:
        logits = logits + plan.offset
    return -float(logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0] @ share)
