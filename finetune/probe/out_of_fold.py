"""What heads say of images that they have not seen, by the features of a frozen backbone."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.models.classifier import ImageClassifier
from finetune.models.eval_mode import eval_mode
from finetune.probe.cross_validation import fit_head
from finetune.probe.extraction import CachedFeatureExtractor
from finetune.probe.feature_store import StoredFeatures
from finetune.probe.linear_probe import ProbePlan, create_feature_extractor
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class OutOfFoldPredictions:
    """What heads say of images that they have not seen.

    Attributes:
        features: Of the N images.
        rows: Which of them were judged, ascending, shape (M,).
        probabilities: Their class probabilities, float32, shape (M, K).
    """

    features: StoredFeatures
    rows: NDArray[np.int64]
    probabilities: Tensor


def predict_out_of_fold(
    classifier: ImageClassifier, plan: ProbePlan, *, device: torch.device, reporter: Reporter
) -> OutOfFoldPredictions:
    """Return what heads say of training images that they have not seen.

    Args:
        classifier: Whose backbone is asked; it is left on the device.
        plan: Images and ways.
        device: Where.
        reporter: Told of the progress.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
        TrainingError: The features are no numbers, or the memory does not suffice.
    """
    classifier.to(device)
    with eval_mode(classifier):
        answers = create_feature_extractor(classifier.network, None)
        features = CachedFeatureExtractor(
            answers, plan.extraction, device=device, rendezvous=None, reporter=reporter
        )
        (seen,) = features.extract(plan.train.paths)
    labels = plan.train.labels
    every_class = len(plan.classes)
    fitted = fit_head(seen, labels, np.ones(len(labels)), num_classes=every_class)
    return OutOfFoldPredictions(seen[0], fitted.held_out_rows, fitted.held_out_probabilities)
