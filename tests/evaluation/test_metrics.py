"""Metrics compared with scikit-learn and plain loops."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from finetune.evaluation.metrics import calibration_error, evaluate_probabilities, log_loss
from finetune.types import Evaluation

K = 8
ABSENT, NEVER_PREDICTED, UNKNOWN = 5, 6, 7  # the last is neither present nor predicted
CLASSES = [f"class {k}" for k in range(K)]


def _draw(seed: int, size: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, K, generator=generator)
    logits[:, [NEVER_PREDICTED, UNKNOWN]] -= 20
    target = torch.randint(K - 1, (size,), generator=generator)
    target[target == ABSENT] = 0
    return logits.softmax(1), target


def select_rarest(target: Tensor, present: list[int]) -> list[int]:
    """Return the rarest third of the classes present: two of six."""
    counts = target.bincount(minlength=K).tolist()
    return sorted(present, key=lambda k: counts[k])[:2]


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Evaluation]:
    probabilities, target = _draw(request.param)
    return probabilities, target, evaluate_probabilities(probabilities, target, classes=CLASSES)


def test_evaluate_probabilities_metrics_equal_scikit_learn(
    case: tuple[Tensor, Tensor, Evaluation],
) -> None:
    probabilities, target_tensor, evaluation = case
    target, predicted = target_tensor.numpy(), probabilities.argmax(1).numpy()
    occurring = sorted({*target.tolist(), *predicted.tolist()})
    present = sorted({*target.tolist()})
    recall = reference.recall_score(
        target, predicted, labels=present, average="macro", zero_division=0
    )
    doubles = probabilities.double().numpy()
    expected = {
        "loss": reference.log_loss(
            target, doubles / doubles.sum(1, keepdims=True), labels=list(range(K))
        ),
        "accuracy": reference.accuracy_score(target, predicted),
        "balanced_accuracy": recall,
        "macro_f1": reference.f1_score(target, predicted, labels=occurring, average="macro"),
        "top5_accuracy": reference.top_k_accuracy_score(
            target, probabilities.numpy(), k=5, labels=list(range(K))
        ),
        "rarest_third_recall": reference.recall_score(
            target,
            predicted,
            labels=select_rarest(target_tensor, present),
            average="macro",
            zero_division=0,
        ),
    }
    assert evaluation.num_images == len(target)
    assert evaluation.metrics == pytest.approx(expected, abs=1e-6)


def test_balanced_accuracy_equals_scikit_learn_if_predicted_classes_are_present() -> None:
    probabilities, _ = _draw(4)
    predicted = probabilities.argmax(1)
    target = torch.where(torch.arange(len(predicted)) % 3 == 0, predicted.flip(0), predicted)
    evaluation = evaluate_probabilities(probabilities, target, classes=CLASSES)
    expected = reference.balanced_accuracy_score(target.numpy(), predicted.numpy())
    assert evaluation.metrics["balanced_accuracy"] == pytest.approx(expected)


def test_per_class_metrics_equal_scikit_learn_and_are_none_if_undefined(
    case: tuple[Tensor, Tensor, Evaluation],
) -> None:
    probabilities, target, evaluation = case
    predicted = probabilities.argmax(1)
    columns = reference.precision_recall_fscore_support(
        target.numpy(), predicted.numpy(), labels=list(range(K)), zero_division=np.nan
    )
    for k, (stats, p, r, f, n) in enumerate(zip(evaluation.per_class, *columns, strict=True)):
        assert (stats.name, stats.support) == (CLASSES[k], n)
        assert stats.num_predicted == int((predicted == k).sum())
        for value, expected in ((stats.precision, p), (stats.recall, r), (stats.f1, f)):
            assert value == (None if math.isnan(expected) else pytest.approx(expected))
    absent, never, unknown = (evaluation.per_class[k] for k in (ABSENT, NEVER_PREDICTED, UNKNOWN))
    assert (absent.recall, absent.precision, absent.f1) == (None, 0, 0)
    assert (never.recall, never.precision, never.f1) == (0, None, 0)
    assert (unknown.recall, unknown.precision, unknown.f1) == (None, None, None)


def test_confusion_matrix_equals_scikit_learn(case: tuple[Tensor, Tensor, Evaluation]) -> None:
    probabilities, target, evaluation = case
    predicted = probabilities.argmax(1)
    expected = reference.confusion_matrix(target.numpy(), predicted.numpy(), labels=list(range(K)))
    np.testing.assert_array_equal(np.array(evaluation.confusion_matrix), expected)


def test_evaluate_probabilities_is_independent_of_image_order() -> None:
    probabilities, target = _draw(9)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    one = evaluate_probabilities(probabilities, target, classes=CLASSES)
    other = evaluate_probabilities(probabilities[order], target[order], classes=CLASSES)
    assert one.per_class == other.per_class
    assert one.metrics == pytest.approx(other.metrics)


@pytest.mark.parametrize(("num_classes", "expected"), [(2, False), (5, False), (6, True)])
def test_top5_accuracy_exists_with_more_than_five_classes(num_classes: int, expected: bool) -> None:
    evaluation = evaluate_probabilities(
        torch.eye(num_classes), torch.arange(num_classes), classes=CLASSES[:num_classes]
    )
    assert ("top5_accuracy" in evaluation.metrics) is expected
    assert evaluation.metrics["accuracy"] == 1


def test_loss_of_a_certain_mistake_is_finite() -> None:
    evaluation = evaluate_probabilities(torch.eye(2), torch.tensor([1, 0]), classes=CLASSES[:2])
    assert math.isfinite(evaluation.metrics["loss"])
    assert evaluation.metrics["accuracy"] == 0


def test_rarest_third_is_ranked_by_training_images_if_known() -> None:
    probabilities, target = _draw(3)
    counts = [50, 4, 30, 3, 40, 2, 60, 70]  # the rarest: 5, which is absent, and 3
    evaluation = evaluate_probabilities(probabilities, target, classes=CLASSES, train_counts=counts)
    assert evaluation.rarest_classes == ("class 5", "class 3")
    predicted = probabilities.argmax(1).numpy()
    expected = reference.recall_score(target.numpy(), predicted, labels=[3], average="macro")
    assert evaluation.metrics["rarest_third_recall"] == pytest.approx(expected)
    assert [stats.train_images for stats in evaluation.per_class] == counts
    assert evaluation.undefined_metrics == ()
    counts = [50, 30, 30, 30, 40, 2, 60, 3]  # the rarest: 5 and 7, which are both absent
    evaluation = evaluate_probabilities(probabilities, target, classes=CLASSES, train_counts=counts)
    assert evaluation.rarest_classes == ("class 5", "class 7")
    assert "rarest_third_recall" not in evaluation.metrics
    assert evaluation.undefined_metrics == ("rarest_third_recall",)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 9], [0]),
        ([9, 7, 8], [1]),
        ([9, 9, 9, 9, 3, 2], [5, 4]),
        ([9, 9, 9, 9, 9, 2], [5]),  # the second of two would depend on the order of the classes
        ([9, 2, 2, 2], [1, 2, 3]),
    ],
)
def test_rarest_third_takes_classes_with_equal_counts_together(
    counts: list[int], expected: list[int]
) -> None:
    num_classes = len(counts)
    target = torch.repeat_interleave(torch.arange(num_classes), torch.tensor(counts))
    for train_counts in (None, counts):
        evaluation = evaluate_probabilities(
            torch.eye(num_classes)[target],
            target,
            classes=CLASSES[:num_classes],
            train_counts=train_counts,
        )
        assert evaluation.rarest_classes == tuple(CLASSES[k] for k in expected)
        assert evaluation.metrics["rarest_third_recall"] == 1


@pytest.mark.parametrize("counts", [[32] * 6, [26, 25, 26, 25], [8, 7]])
def test_rarest_third_is_empty_if_counts_differ_by_the_rounding_of_a_split(
    counts: list[int],
) -> None:
    num_classes = len(counts)
    evaluation = evaluate_probabilities(
        torch.eye(num_classes),
        torch.arange(num_classes),
        classes=CLASSES[:num_classes],
        train_counts=counts,
    )
    assert evaluation.rarest_classes == ()
    assert "rarest_third_recall" not in evaluation.metrics
    assert evaluation.undefined_metrics == ()


def test_intervals_solve_the_defining_equation_of_wilson(
    case: tuple[Tensor, Tensor, Evaluation],
) -> None:
    probabilities, target, evaluation = case
    is_correct = probabilities.argmax(1) == target

    def check_interval(bounds: tuple[float, float], count: int, total: int) -> None:
        # both ends p solve (proportion - p)^2 = z^2 p (1 - p) / n
        for p in bounds:
            assert (count / total - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / total)

    check_interval(evaluation.accuracy_interval, int(is_correct.sum()), len(target))
    for k, stats in enumerate(evaluation.per_class):
        if stats.support == 0:
            assert stats.recall_interval is None
        elif 0 < int(is_correct[target == k].sum()) < stats.support:
            assert stats.recall_interval is not None
            check_interval(stats.recall_interval, int(is_correct[target == k].sum()), stats.support)


def test_evaluate_probabilities_without_images_raises_value_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_probabilities(torch.empty(0, 2), torch.empty(0).long(), classes=CLASSES[:2])


@pytest.mark.parametrize("seed", [0, 1])
def test_calibration_error_equals_a_plain_loop(seed: int) -> None:
    probabilities, target = _draw(seed)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), target.tolist(), strict=True):
        confidence = max(row)
        is_correct = row.index(confidence) == label
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, is_correct))
    assert len(bins) > 5
    gaps = [
        abs(sum(confidence for confidence, _ in entries) - sum(correct for _, correct in entries))
        for entries in bins.values()
    ]
    assert calibration_error(probabilities, target) == pytest.approx(sum(gaps) / 200, abs=1e-6)


def test_log_loss_of_probability_zero_is_finite() -> None:
    loss = log_loss(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]))
    smallest = math.log(torch.finfo(torch.float32).tiny)
    assert loss == pytest.approx((math.log(2) - smallest) / 2)
