"""Effect of rejecting answers on labelled images: how many are answered, and how rightly."""

from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.evaluation.rejection.probability_threshold import count_answers
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.feature_pass import predict_features
from finetune.inference.rejection.rejector import Rejector, count_reasons
from finetune.types import Judgement


def judge_answers(
    bundle: ModelBundle,
    predictor: Predictor,
    paths: Sequence[Path],
    rejector: Rejector | None,
    *,
    on_batch: Callable[[int], None],
    unreadable: MutableMapping[int, str],
) -> tuple[Tensor, list[Judgement]]:
    """Return the logits of images (N, V, K), and a judgement of each; none without a rejector.

    Args:
        bundle: Model.
        predictor: Its predictor.
        paths: Image files, shape (N,).
        rejector: Rejector; None for none.
        on_batch: Callback that receives the number of images of each finished batch.
        unreadable: Receives the rows of images that cannot be read, as for ``predict_logits``.

    Raises:
        ModelError: The model has no features.
    """
    if rejector is None:
        return predictor.predict_logits(paths, on_batch=on_batch, unreadable=unreadable), []
    logits, features = predict_features(
        bundle, predictor, paths, option="--reject", on_batch=on_batch, unreadable=unreadable
    )
    return logits, rejector.judge(predictor.compute_probabilities(logits), features)


def evaluate_rejection(
    predictor: Predictor,
    rejector: Rejector | None,
    logits: Tensor,
    targets: NDArray[Any],
    judgements: Sequence[Judgement],
    *,
    has_chosen: bool,
) -> dict[str, Any] | None:
    """Return what a rejector does to labelled images as JSON values; None without one.

    Args:
        predictor: Predictor of the model.
        rejector: Rejector of its answers.
        logits: Logits of the images, shape (N, V, K).
        targets: Class indices (N,), or labels of multi-label images (N, K), which have no answer
            that is right as a whole: of them only the rejected ones are counted.
        judgements: Judgements of the answers, shape (N,).
        has_chosen: Whether the images are those that chose the thresholds.
    """
    if rejector is None:
        return None
    is_answered = np.array([not judgement.is_rejected for judgement in judgements], bool)
    tree = {
        **rejector.to_json(),
        "description": rejector.describe(),
        "has_chosen": has_chosen,
        "num_images": len(judgements),
        "num_rejected": count_reasons(judgements),
        "answered": None,
    }
    if not predictor.card.is_multi_label:
        labels = predictor.compute_probabilities(logits).argmax(dim=1)
        is_correct = (labels == torch.from_numpy(targets)).numpy()
        tree["answered"] = count_answers(is_answered, is_correct).to_json()
    return tree
