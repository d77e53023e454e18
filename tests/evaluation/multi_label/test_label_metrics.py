"""Tests of metrics, thresholds and calibration of multi-label images."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from finetune.evaluation.multi_label.label_calibration import (
    calibrate_labels,
    compute_calibrated_label_losses,
    compute_label_validation_metrics,
)
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds

CLASSES = ("a", "b", "c", "d")


def make_predictions(
    num_images: int = 200, *, seed: int = 0, decimals: int = 2, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return probabilities, with ties, and targets of four labels of different frequencies."""
    random = np.random.default_rng(seed)
    target = random.random((num_images, 4)) < np.array([0.5, 0.3, 0.1, 0.06])
    logits = 2 * target - 1 + noise * random.normal(size=target.shape)
    probabilities = np.round(1 / (1 + np.exp(-logits)), decimals).clip(0.01, 0.99)
    return torch.from_numpy(probabilities), torch.from_numpy(target).float()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("decimals", [1, 8])
def test_evaluate_labels_equals_scikit_learn_and_torchmetrics(seed: int, decimals: int) -> None:
    probabilities, target = make_predictions(seed=seed, decimals=decimals)
    thresholds = (0.5, 0.35, 0.6, 0.2)
    result = evaluate_labels(probabilities, target, classes=CLASSES, thresholds=thresholds)
    p, y = probabilities.numpy(), target.numpy().astype(int)
    predicted = (p >= np.array(thresholds)).astype(int)
    expected = {
        "loss": np.mean([log_loss(y[:, k], p[:, k], labels=[0, 1]) for k in range(4)]),
        "mean_average_precision": average_precision_score(y, p, average="macro"),
        "micro_average_precision": average_precision_score(y, p, average="micro"),
        "macro_f1": f1_score(y, predicted, average="macro"),
        "micro_f1": f1_score(y, predicted, average="micro"),
        "subset_accuracy": accuracy_score(y, predicted),
    }
    assert dict(result.metrics) == pytest.approx(expected)
    assert result.undefined_metrics == ()
    by_torchmetrics = multilabel_average_precision(
        probabilities, target.long(), num_labels=4, average=None
    )
    for k, stats in enumerate(result.per_label):
        assert (stats.name, stats.threshold) == (CLASSES[k], thresholds[k])
        assert stats.average_precision == pytest.approx(float(by_torchmetrics[k]), abs=1e-6)
        assert stats.precision == pytest.approx(precision_score(y[:, k], predicted[:, k]))
        assert stats.recall == pytest.approx(recall_score(y[:, k], predicted[:, k]))
        assert stats.f1 == pytest.approx(f1_score(y[:, k], predicted[:, k]))
        assert (stats.support, stats.num_predicted) == (y[:, k].sum(), predicted[:, k].sum())


def test_evaluate_labels_leaves_labels_without_images_out() -> None:
    probabilities, target = make_predictions()
    target[:, 1] = 0
    result = evaluate_labels(probabilities, target, classes=CLASSES, train_counts=[5, 6, 7, 8])
    missing = result.per_label[1]
    assert (missing.average_precision, missing.recall, missing.train_images) == (None, None, 6)
    assert missing.f1 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        expected = [average_precision_score(target[:, k], probabilities[:, k]) for k in (0, 2, 3)]
    assert result.metrics["mean_average_precision"] == pytest.approx(np.mean(expected))


def test_evaluate_labels_names_what_is_undefined() -> None:
    result = evaluate_labels(
        torch.full((3, 2), 0.1).double(), torch.zeros(3, 2), classes=("a", "b")
    )
    assert result.undefined_metrics == (
        "mean_average_precision", "micro_average_precision", "macro_f1", "micro_f1",
    )  # fmt: skip
    assert result.metrics["subset_accuracy"] == 1
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_labels(torch.zeros(0, 2), torch.zeros(0, 2), classes=("a", "b"))


@pytest.mark.parametrize("decimals", [1, 8])
def test_choose_thresholds_is_the_best_of_all(decimals: int) -> None:
    probabilities, target = make_predictions(decimals=decimals)
    thresholds = choose_thresholds(probabilities, target, min_images=1)
    for k, threshold in enumerate(thresholds):
        p, y = probabilities[:, k].numpy(), target[:, k].numpy()
        scores = [f1_score(y, p >= candidate) for candidate in np.unique(p)]
        assert f1_score(y, p >= threshold) == pytest.approx(max(scores))
        assert threshold not in p


@pytest.mark.parametrize("ulps", [1, 2])
def test_choose_thresholds_separates_adjacent_numbers(ulps: int) -> None:
    low = high = 0.7
    for _ in range(ulps):
        high = float(np.nextafter(high, 1.0))
    probabilities = torch.tensor([[high], [high], [low], [low]], dtype=torch.float64)
    target = torch.tensor([[1], [1], [0], [0]])
    (threshold,) = choose_thresholds(probabilities, target, min_images=1)
    assert (probabilities[:, 0] >= threshold).tolist() == [True, True, False, False]


def test_choose_thresholds_labels_with_few_images_share_the_common_one() -> None:
    probabilities, target = make_predictions(100)
    counts = target.sum(dim=0)
    assert counts[1] >= 10 > counts[3]
    thresholds = choose_thresholds(probabilities, target)
    p, y = probabilities.numpy().ravel(), target.numpy().ravel()
    assert f1_score(y, p >= thresholds[3]) == pytest.approx(
        max(f1_score(y, p >= candidate) for candidate in np.unique(p))
    )
    assert choose_thresholds(probabilities, torch.zeros_like(target)) == (0.5,) * 4


def make_logits(scale: float) -> tuple[Tensor, Tensor]:
    """Return logits that are too large by a factor, and targets drawn from the right ones."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 3, generator=generator)
    return scale * logits, (torch.rand(400, 3, generator=generator) < logits.sigmoid()).float()


def test_calibrate_labels_finds_the_scale_of_the_logits() -> None:
    logits, target = make_logits(3.0)
    groups = np.arange(400) // 2 * 2
    calibration = calibrate_labels(logits, target, groups=groups)
    assert calibration is not None
    assert calibration.num_images == 400
    assert calibration.temperature == pytest.approx(3.0, rel=0.15)
    assert calibration.after.loss < calibration.before.loss
    assert calibration.after.calibration_error < calibration.before.calibration_error

    def compute_loss(temperature: float) -> float:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits.double() / temperature, target.double()
        ).item()

    best = minimize_scalar(compute_loss, bounds=(0.5, 10), method="bounded")
    assert calibration.fitted_temperature == pytest.approx(best.x, rel=0.02)
    losses = compute_calibrated_label_losses(logits, target)
    assert losses.shape == (400,)
    assert losses.mean().item() == pytest.approx(best.fun, rel=1e-3)


def test_calibrate_labels_of_one_image_is_none() -> None:
    assert calibrate_labels(torch.zeros(1, 3), torch.zeros(1, 3)) is None


def test_validation_metrics_choose_thresholds_on_the_images() -> None:
    logits, target = make_logits(3.0)
    metrics = compute_label_validation_metrics(logits - 2, target, classes=("a", "b", "c"))
    probabilities = (logits - 2).double().sigmoid()
    at_half = evaluate_labels(probabilities, target, classes=("a", "b", "c")).metrics
    assert metrics["macro_f1"] > at_half["macro_f1"]
    assert metrics["mean_average_precision"] == at_half["mean_average_precision"]
    assert metrics["calibrated_loss"] < metrics["loss"] == at_half["loss"]
