"""Reasons for which answers are rejected, and models that cannot have a rule."""

import numpy as np
import pytest
import torch

from finetune.bundle.model_card import ModelCard
from finetune.bundle.rejection.rejection_statistics import RejectionStatistics
from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import RejectOptions
from finetune.inference.rejection.rejector import LOW_PROBABILITY, UNLIKE_TRAINING, Rejector
from finetune.types import PreprocessSpec

SPEC = PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center")
CARD = ModelCard("test_resnet", {}, ("ant", "bee"), SPEC)
MULTI_LABEL_CARD = ModelCard("test_resnet", {}, ("ant", "bee"), SPEC, thresholds=(0.5, 0.5))


def _build_statistics() -> RejectionStatistics:
    """Return statistics of one training image, and of 100 validation images around it."""
    return RejectionStatistics(
        np.array([[1, 0]], np.float16),
        np.linspace(0, 0.5, 100, dtype=np.float32),
        np.linspace(0.5, 0.995, 100, dtype=np.float32),
        np.arange(100) >= 20,
    )


def test_reasons_follow_distance_and_probability() -> None:
    rejector = Rejector(_build_statistics(), RejectOptions(1.0, 0.05), CARD)
    assert rejector.probability is not None
    assert rejector.distance is not None
    assert rejector.probability.threshold == pytest.approx(0.6)
    assert rejector.distance.num_images == 100
    near, far = [1.0, 0.01], [0.0, 1.0]
    judgements = rejector.judge(
        torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.9, 0.1], [0.5, 0.5]]),
        torch.tensor([near, near, far, [float("nan"), 0.0]]),
    )
    reasons = [judgement.reason for judgement in judgements]
    assert reasons == ["", LOW_PROBABILITY, UNLIKE_TRAINING, UNLIKE_TRAINING]
    assert judgements[2].distance == pytest.approx(2**0.5)
    assert [judgement.is_rejected for judgement in judgements] == [False, True, True, True]


def test_one_rule_alone_rejects_nothing_by_the_other() -> None:
    rejector = Rejector(_build_statistics(), RejectOptions(precision=1.0), CARD)
    (judgement,) = rejector.judge(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.0, 1.0]]))
    assert judgement.reason == ""


def test_multi_label_models_have_the_rule_of_distances_alone() -> None:
    with pytest.raises(ConfigError, match=r"precision=0\.9 cannot apply to a multi-label model"):
        Rejector(_build_statistics(), RejectOptions(precision=0.9), MULTI_LABEL_CARD)
    rejector = Rejector(_build_statistics(), RejectOptions(None, 0.05), MULTI_LABEL_CARD)
    (judgement,) = rejector.judge(torch.tensor([[0.9, 0.8]]), torch.tensor([[0.0, 1.0]]))
    assert judgement.is_rejected


def test_precision_that_no_threshold_has_is_refused() -> None:
    statistics = _build_statistics()
    wrong = RejectionStatistics(
        statistics.features, statistics.distances, statistics.probabilities, np.arange(100) % 2 == 0
    )
    with pytest.raises(ConfigError, match=r"no threshold reaches it .* highest precision is 5\d"):
        Rejector(wrong, RejectOptions(precision=0.9), CARD)
