"""What a model is worth on labelled images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.inference.predictor import Predictor
from finetune.metrics import evaluate_probabilities
from finetune.types import Evaluation


def evaluate_files(
    predictor: Predictor,
    paths: Sequence[Path],
    labels: Sequence[int],
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return all metrics of a model on image files, each counted once.

    Args:
        predictor: The model.
        paths: Image files, shape (N,).
        labels: Class indices in the model's order, shape (N,).
        on_batch: Called with the number of images that are done.

    Raises:
        DataError: A file cannot be read.
    """
    return evaluate_logits(predictor, predictor.logits(paths, on_batch=on_batch), labels)


def evaluate_logits(predictor: Predictor, logits: Tensor, labels: Sequence[int]) -> Evaluation:
    """Return all metrics of what a model's network has answered.

    Args:
        predictor: The model.
        logits: Its network's, shape (N, V, K), V views of an image.
        labels: Class indices in the model's order, shape (N,).
    """
    return evaluate_probabilities(
        predictor.of_logits(logits), torch.tensor(list(labels)), classes=predictor.card.classes
    )
