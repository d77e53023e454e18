"""Effect of flips, turns and crops on linear heads, which shows whether they change the class.

A head that is fitted to images as they are classifies flipped photos as well as before, but not
flipped digits or text. Each image is classified by a head that was fitted without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.data.multi_label.multi_hot import get_strata
from finetune.distributed.collectives import broadcast_weights
from finetune.distributed.rendezvous import Rendezvous
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.probe.cross_validation import NUM_FOLDS, fit_head
from finetune.probe.features.augmented_views import AugmentedViewSpec
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.logistic import (
    FeatureArray,
    HeadFitter,
    LinearHead,
    LogisticProblem,
    Targets,
)
from finetune.probe.neighbour_links import build_folds
from finetune.types import Reporter

_TOLERANCE = 1e-4

Correct = NDArray[np.bool_] | NDArray[np.float64]
"""Whether each image is right, or the fraction of its labels that are."""


@dataclass(frozen=True, slots=True)
class ViewEffect:
    """Held-out results of heads fitted to evaluation views, on these and on another view.

    Attributes:
        num_images: Number of images N.
        loss: Mean log loss of the evaluation views.
        loss_change: Mean change of an image's log loss in the other view.
        loss_error: Standard error of ``loss_change``.
        accuracy: Accuracy on the evaluation views.
        view_accuracy: Accuracy on the other views.
        accuracy_error: Standard error of their difference.
        fitted_change: Mean change of an image's log loss in the evaluation view by heads that are
            fitted to both views.
        fitted_error: Standard error of ``fitted_change``.
    """

    num_images: int
    loss: float
    loss_change: float
    loss_error: float
    accuracy: float
    view_accuracy: float
    accuracy_error: float
    fitted_change: float
    fitted_error: float

    @classmethod
    def from_images(
        cls,
        losses: tuple[NDArray[np.float64], NDArray[np.float64]],
        is_correct: tuple[Correct, Correct],
        fitted_losses: NDArray[np.float64],
    ) -> "ViewEffect":
        """Return the effect from results of each image, each (N,).

        Args:
            losses: Log loss in the evaluation view and in the other view.
            is_correct: Whether it is classified correctly in the two views; of a multi-label image
                the fraction of its labels.
            fitted_losses: Log loss in the evaluation view by heads that are fitted to both views.
        """
        changes, fitted_changes = losses[1] - losses[0], fitted_losses - losses[0]
        corrections = is_correct[1].astype(float) - is_correct[0]
        scale = 1 / max(1, len(changes)) ** 0.5
        return cls(
            num_images=len(changes),
            loss=float(losses[0].mean()),
            loss_change=float(changes.mean()),
            loss_error=float(changes.std() * scale),
            accuracy=float(is_correct[0].mean()),
            view_accuracy=float(is_correct[1].mean()),
            accuracy_error=float(corrections.std() * scale),
            fitted_change=float(fitted_changes.mean()),
            fitted_error=float(fitted_changes.std() * scale),
        )

    @property
    def loss_z_score(self) -> float:
        """Change of the log loss in standard errors, positive if the view is harder."""
        return self.loss_change / max(self.loss_error, 1e-9)

    @property
    def fitted_z_score(self) -> float:
        """``fitted_change`` in standard errors, negative if the view helps heads."""
        return self.fitted_change / max(self.fitted_error, 1e-9)

    @property
    def accuracy_z_score(self) -> float:
        """Loss of accuracy in standard errors, positive if the view is harder."""
        return (self.accuracy - self.view_accuracy) / max(self.accuracy_error, 1e-9)


def sample_rows(labels: NDArray[np.int64], max_images: int, *, seed: int) -> NDArray[np.int64]:
    """Return ascending rows of at most ``max_images`` images, as many of each class as possible.

    Args:
        labels: Class indices, shape (N,).
        max_images: Number of images.
        seed: Seed of the draw.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank_in_class[members] = np.arange(len(members))
    order = shuffled[np.argsort(rank_in_class[shuffled], kind="stable")]
    return np.sort(order[:max_images])


def measure_view_effects(
    classifier: ImageClassifier,
    paths: Sequence[Path],
    labels: Targets,
    *,
    flips: Sequence[str],
    crop_areas: Sequence[float],
    is_crop_accepted: Callable[[ViewEffect], bool],
    num_classes: int,
    groups: NDArray[np.int64] | None = None,
    extraction: ExtractionPlan,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
) -> dict[str | float, ViewEffect] | None:
    """Return the effect of each view on heads that are fitted to the evaluation views.

    All ranks of the process group call it and split the feature extraction.

    Args:
        classifier: Classifier whose backbone computes the features; it is left on the device.
        paths: Image files, shape (N,).
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, (N, K).
        flips: Some of ``HFLIP``, ``VFLIP`` and ``ROT90``.
        crop_areas: Areas of random crops relative to the image, in the order in which they are
            tried; those after the first accepted one are not.
        is_crop_accepted: Returns whether a crop with this effect suits the images.
        num_classes: Number of classes K.
        groups: Groups that are kept in one fold, as ``encode_groups`` returns them, shape (N,);
            None for none.
        extraction: Settings of the feature extraction.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.

    Returns:
        Effects by the names and areas of the views on rank 0; None on the others.

    Raises:
        DataError: A file can no longer be read as before.
        StorageError: The disk is full or fails.
        StopRequest: A rank received a stop signal.
        TrainingError: The features are not finite, or memory does not suffice.
    """
    classifier.to(device)
    if rendezvous is not None:
        broadcast_weights(classifier)
    is_main = rendezvous is None or rendezvous.launch.rank == 0
    effects: dict[str | float, ViewEffect] = {}
    with eval_mode(classifier):
        cached_extractor = CachedFeatureExtractor(
            create_feature_extractor(classifier.network, with_stages=extraction.with_stages),
            extraction,
            device=device,
            rendezvous=rendezvous,
            reporter=reporter,
        )
        first = AugmentedViewSpec(flips=tuple(flips), crop_areas=tuple(crop_areas[:1]))
        for views in (first, *(AugmentedViewSpec(crop_areas=(area,)) for area in crop_areas[1:])):
            outputs = cached_extractor.extract(paths, views)
            is_last = views.crop_areas == tuple(crop_areas[-1:])
            if is_main:
                by_key = dict(zip(views.keys, outputs[0][1:], strict=True))
                effects |= compare_views(
                    outputs[0][0], by_key, labels, num_classes=num_classes, groups=groups
                )
                is_last = is_last or is_crop_accepted(effects[views.crop_areas[0]])
            if _broadcast(is_last, views.crop_areas, rendezvous):
                break
    return effects if is_main else None


def _broadcast(value: bool, areas: tuple[float, ...], rendezvous: Rendezvous | None) -> bool:
    """Return rank 0's value on all ranks, which wait for as long as its heads take to fit."""
    if rendezvous is None:
        return value
    key = f"crops accepted/{areas}"
    if rendezvous.launch.rank > 0:
        return bool(rendezvous.receive(key))
    rendezvous.broadcast(key, value)
    return value


def compare_views(
    features: FeatureArray,
    views: Mapping[str | float, FeatureArray],
    labels: Targets,
    *,
    num_classes: int,
    groups: NDArray[np.int64] | None = None,
) -> dict[str | float, ViewEffect]:
    """Return the effect of each view on heads fitted to the evaluation views of other images.

    Args:
        features: Features of the evaluation views, (N, D).
        views: Features of other views of the same images, each (N, D).
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, (N, K).
        num_classes: Number of classes K.
        groups: Groups that are kept in one fold, as ``encode_groups`` returns them, shape (N,);
            None for none.
    """
    ones = np.ones(len(labels))
    penalty = fit_head([features], labels, ones, num_classes=num_classes, groups=groups).penalty
    strata = get_strata(labels)
    folds = build_folds(features, strata, num_folds=NUM_FOLDS, groups=groups).fold_of_image
    weights = np.stack([ones * (folds != fold) for fold in range(NUM_FOLDS)])

    def fit(*fitted_views: FeatureArray) -> list[LinearHead]:
        """Return the head of each fold, fitted to views of the images of the other folds."""
        num_views = len(fitted_views)
        problem = LogisticProblem(
            np.concatenate([view[:] for view in fitted_views]),
            np.concatenate([labels] * num_views),
            np.tile(weights, (1, num_views)),
            num_classes,
        )
        return HeadFitter(problem, tolerance=_TOLERANCE).fit(penalty)

    def evaluate(
        heads: list[LinearHead], view: FeatureArray
    ) -> tuple[NDArray[np.float64], Correct]:
        """Return each image's log loss, and whether it, or which part of its labels, is right."""
        logits_by_head = torch.stack([head.compute_logits(view) for head in heads]).double()
        logits = logits_by_head[torch.from_numpy(folds), torch.arange(len(labels))]
        target = torch.from_numpy(labels)
        if target.ndim == 2:
            losses = binary_cross_entropy_with_logits(logits, target.double(), reduction="none")
            # of its labels: few images are right with all of them
            return losses.mean(dim=1).numpy(), ((logits > 0) == (target > 0.5)).double().mean(
                1
            ).numpy()
        losses = cross_entropy(logits, target, reduction="none")
        return losses.numpy(), logits.argmax(dim=1).numpy() == labels

    heads = fit(features)
    loss, is_correct = evaluate(heads, features)
    effects = {}
    for key, view in views.items():
        view_loss, is_view_correct = evaluate(heads, view)
        fitted_loss, _ = evaluate(fit(features, view), features)
        effects[key] = ViewEffect.from_images(
            (loss, view_loss), (is_correct, is_view_correct), fitted_loss
        )
    return effects
