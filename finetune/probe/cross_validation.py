"""Cross-validated linear heads: choice of the L2 penalty and out-of-fold class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.multi_label.multi_hot import get_strata
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.features.feature_store import StoredFeatures
from finetune.probe.logistic import FeatureArray, LinearHead, Targets
from finetune.probe.neighbour_links import build_folds
from finetune.probe.penalty_search import (
    CHUNK_ROWS,
    PENALTIES,
    SEARCH_TOLERANCE,
    HeldOutImages,
    create_fitter,
    search_penalty,
)
from finetune.types import Reporter

NUM_FOLDS = 5
MAX_IMAGES_FOR_ALL_FOLDS = 20_000
"""Number of images above which one fold suffices."""

_FINAL_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class CrossValidatedHead:
    """A linear head whose penalty was chosen by cross-validation.

    Attributes:
        head: Head fitted on all images.
        penalty: The chosen L2 penalty.
        held_out_loss: Weighted mean loss of the held-out images, with the logit offset of the fit.
        held_out_accuracy: Weighted accuracy on the held-out images, by the head's own logits; of
            multi-label images the mean over their labels.
        held_out_rows: Rows of the held-out images, ascending, shape (M,). Images of a class that is
            in one fold alone are not among them.
        held_out_probabilities: Their class probabilities by the head of the other folds, with the
            logit offset of the fit, float32, shape (M, K).
        folds: Fold of each image, held out or not, shape (N,).
        num_folds: Number of folds.
        num_held_out_folds: Number of folds that were held out in turn, from fold 0.
        num_groups: Number of groups of images that are kept in one fold: those given, and similar
            neighbours.
    """

    head: LinearHead
    penalty: float
    held_out_loss: float
    held_out_accuracy: float
    held_out_rows: NDArray[np.int64]
    held_out_probabilities: Tensor
    folds: NDArray[np.int64]
    num_folds: int
    num_held_out_folds: int
    num_groups: int


def extract_features(
    classifier: ImageClassifier,
    paths: Sequence[Path],
    *,
    extraction: ExtractionPlan,
    device: torch.device,
    reporter: Reporter,
) -> StoredFeatures:
    """Return the frozen features of images, evaluation view, stored or computed now.

    Args:
        classifier: Classifier whose backbone computes the features; it is left on the device.
        paths: Image files, shape (N,).
        extraction: Settings of the feature extraction.
        device: Device of the computation.
        reporter: Receiver of progress.

    Raises:
        DataError: A file can no longer be read as before.
        StorageError: The disk is full or fails.
        TrainingError: The features are not finite, or memory does not suffice.
    """
    classifier.to(device)
    with eval_mode(classifier):
        cached_extractor = CachedFeatureExtractor(
            create_feature_extractor(classifier.network, with_stages=extraction.with_stages),
            extraction,
            device=device,
            rendezvous=None,
            reporter=reporter,
        )
        views, *_ = cached_extractor.extract(paths)
    return views[0]


def count_held_out_folds(
    num_images: int, *, max_images_for_all_folds: int = MAX_IMAGES_FOR_ALL_FOLDS
) -> int:
    """Return how many of the folds are held out in turn."""
    return NUM_FOLDS if num_images <= max_images_for_all_folds else 1


def fit_head(
    views: Sequence[FeatureArray],
    labels: Targets,
    weights: NDArray[np.float64],
    *,
    num_classes: int,
    groups: NDArray[np.int64] | None = None,
    logit_offset: Tensor | None = None,
    positive_weights: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
    max_images_for_all_folds: int = MAX_IMAGES_FOR_ALL_FOLDS,
    chunk_rows: int = CHUNK_ROWS,
) -> CrossValidatedHead:
    """Fit a linear head on all views of images, with the penalty of the least held-out loss.

    Five stratified folds; with more than ``max_images_for_all_folds`` images one of the five is
    held out once. All views of an image are in one fold, and so are the images of a group and
    similar neighbours in file order (``build_folds``). The first view alone is evaluated.

    The logit offset is added in the loss and is no part of the head: with the log of the class
    frequencies the head's own logits are those for a uniform class prior (Menon et al. 2021,
    eq. 10, https://arxiv.org/abs/2007.07314). As the bias has no penalty, such a head equals the
    one fitted without, less the offset; so do those of the folds. The held-out loss, by which the
    penalty is chosen, includes the offset; the held-out accuracy is that of the head's own logits.

    Args:
        views: Features of the images, (N, D) for each view; the first is the evaluation view.
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, float32, shape
            (N, K), of which each has a regression of its own; the folds are stratified by the
            rarest label of each image.
        weights: Weight of each image in the mean loss, shape (N,).
        num_classes: Number of classes K.
        groups: Groups as ``encode_groups`` returns them, shape (N,); None for none.
        logit_offset: Offset of the logits in the loss, shape (K,); None for no offset.
        positive_weights: Factor of the loss of multi-label images with each label, shape (K,); None
            for 1.
        penalties: L2 penalties to choose from, in descending order.
        max_images_for_all_folds: Number of images above which a single fold is held out.
        chunk_rows: Rows that are read at a time for held-out logits.
    """
    offset = torch.zeros(num_classes) if logit_offset is None else logit_offset.float()
    is_multi_label = labels.ndim == 2
    grouped = build_folds(views[0], get_strata(labels), num_folds=NUM_FOLDS, groups=groups)
    folds = grouped.fold_of_image
    num_held_out_folds = count_held_out_folds(
        len(labels), max_images_for_all_folds=max_images_for_all_folds
    )
    is_held_out = folds < num_held_out_folds
    is_judged = is_held_out & grouped.is_testable
    rows = np.flatnonzero(is_judged if is_judged.any() else is_held_out)
    fold_weights = np.stack([weights * (folds != fold) for fold in range(num_held_out_folds)])
    fitter = create_fitter(
        views,
        labels,
        fold_weights,
        num_classes,
        tolerance=SEARCH_TOLERANCE,
        positive_weights=positive_weights,
    )
    found = search_penalty(
        fitter,
        HeldOutImages(views[0], labels, weights, folds, rows, positive_weights),
        penalties,
        logit_offset=offset,
        chunk_rows=chunk_rows,
    )
    final = create_fitter(
        views,
        labels,
        weights[None],
        num_classes,
        tolerance=_FINAL_TOLERANCE,
        # a single fold leaves rows out, which may not lie in the space of the others
        scaled_like=fitter if num_held_out_folds > 1 else None,
        positive_weights=positive_weights,
    )
    for penalty in penalties:  # along the same path, which is faster than from zero
        (head,) = final.fit(penalty)
        if penalty == found.penalty:
            break
    head = LinearHead(head.weight, head.bias - offset)
    return CrossValidatedHead(
        head=head,
        penalty=found.penalty,
        held_out_loss=found.loss,
        held_out_accuracy=found.accuracy,
        held_out_rows=rows,
        held_out_probabilities=(
            found.logits.sigmoid() if is_multi_label else found.logits.softmax(dim=1)
        ),
        folds=folds,
        num_folds=NUM_FOLDS,
        num_held_out_folds=num_held_out_folds,
        num_groups=grouped.num_groups,
    )
