"""Statistics for rejection: features of training images, and distances of validation images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.rejection.rejection_statistics import RejectionStatistics
from finetune.data.stratified_sample import draw_stratified_sample
from finetune.data.training_data import LabeledImages
from finetune.errors import DataError
from finetune.evaluation.rejection.feature_distance import compute_distances, normalize_features
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.feature_pass import predict_features
from finetune.types import Reporter

MIN_TRAINING_IMAGES, IMAGES_PER_CLASS, MAX_TRAINING_IMAGES = 2_000, 10, 10_000
"""The sample has this many training images at least, ten for each class, and never more."""

MAX_VALIDATION_IMAGES = 10_000

_OPTION = "rejection.enabled=on"
_EMPTY = np.zeros(0, np.float32)


def measure_rejection_statistics(
    bundle: ModelBundle,
    predictor: Predictor,
    *,
    train: LabeledImages,
    validation: LabeledImages,
    seed: int,
    reporter: Reporter,
) -> RejectionStatistics:
    """Return the statistics of a network from a sample of its training and its validation images.

    Images that cannot be read are left out.

    Args:
        bundle: Model, with the temperature and class prior that its answers have.
        predictor: Its predictor, without test-time augmentation.
        train: Training images.
        validation: Validation images, none of which is a duplicate of a training image.
        seed: Seed of the samples.
        reporter: Receiver of progress.

    Raises:
        DataError: No image can be read.
        ModelError: The model has no features.
    """
    limit = max(MIN_TRAINING_IMAGES, IMAGES_PER_CLASS * len(bundle.card.classes))
    train = _draw(train, min(limit, MAX_TRAINING_IMAGES), seed=seed)
    validation = _draw(validation, MAX_VALIDATION_IMAGES, seed=seed)
    num_train = len(train.paths)
    lost: dict[int, str] = {}
    paths = [*train.paths, *validation.paths]
    reporter.start("features for rejection", len(paths))
    logits, features = predict_features(
        bundle, predictor, paths, option=_OPTION, on_batch=reporter.advance, unreadable=lost
    )
    reporter.finish()
    kept = np.array([row for row in range(len(paths)) if row not in lost], np.int64)
    train_rows, rows = kept[kept < num_train], kept[kept >= num_train]
    if not len(train_rows) or not len(rows):
        raise DataError(
            f"{'No training' if not len(train_rows) else 'No validation'} image can be read."
        )
    # the precision in which they are stored
    reference = normalize_features(features[train_rows].numpy()).astype(np.float16)
    probabilities, is_correct = _EMPTY, np.zeros(0, np.bool_)
    if not bundle.card.is_multi_label:
        probabilities, is_correct = _judge_answers(
            predictor.compute_probabilities(logits[rows]), validation.labels[rows - num_train]
        )
    return RejectionStatistics(
        reference,
        compute_distances(features[rows].numpy(), reference),
        probabilities,
        is_correct,
    )


def _draw(images: LabeledImages, num_images: int, *, seed: int) -> LabeledImages:
    """Return a stratified sample of at most so many images."""
    return images.select(draw_stratified_sample(images.labels, num_images=num_images, seed=seed))


def _judge_answers(
    probabilities: Tensor, label_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the probability of the most probable class of each image, and whether it is right."""
    values, labels = probabilities.float().max(dim=1)
    is_correct = labels == torch.from_numpy(label_N)
    return values.numpy(), is_correct.numpy()
