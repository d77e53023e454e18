"""Every metric against scikit-learn."""

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


def _random(seed: int, size: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, K, generator=generator)
    logits[:, [NEVER_PREDICTED, UNKNOWN]] -= 20
    target = torch.randint(K - 1, (size,), generator=generator)
    target[target == ABSENT] = 0
    return logits.softmax(1), target


def fewest(target: Tensor, present: list[int]) -> list[int]:
    """Return a third of the classes that are present: two of six."""
    counts = target.bincount(minlength=K).tolist()
    return sorted(present, key=lambda k: counts[k])[:2]


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Evaluation]:
    probabilities, target = _random(request.param)
    return probabilities, target, evaluate_probabilities(probabilities, target, classes=CLASSES)


def test_numbers_are_scikit_learns(case: tuple[Tensor, Tensor, Evaluation]) -> None:
    probabilities, target, found = case
    predicted = probabilities.argmax(1)
    occurring = sorted(set(target.tolist()) | set(predicted.tolist()))
    present = sorted(set(target.tolist()))
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
            target, probabilities, k=5, labels=list(range(K))
        ),
        "rarest_third_recall": reference.recall_score(
            target, predicted, labels=fewest(target, present), average="macro", zero_division=0
        ),
    }
    assert found.num_images == len(target)
    assert found.metrics == pytest.approx(expected, abs=1e-6)


def test_balanced_accuracy_is_scikit_learns_where_all_that_is_predicted_is_present() -> None:
    probabilities, _ = _random(4)
    predicted = probabilities.argmax(1)
    target = torch.where(torch.arange(len(predicted)) % 3 == 0, predicted.flip(0), predicted)
    found = evaluate_probabilities(probabilities, target, classes=CLASSES)
    expected = reference.balanced_accuracy_score(target, predicted)
    assert found.metrics["balanced_accuracy"] == pytest.approx(expected)


def test_classes_are_scikit_learns_and_none_where_undefined(
    case: tuple[Tensor, Tensor, Evaluation],
) -> None:
    probabilities, target, found = case
    predicted = probabilities.argmax(1)
    columns = reference.precision_recall_fscore_support(
        target, predicted, labels=list(range(K)), zero_division=np.nan
    )
    for k, (stats, p, r, f, n) in enumerate(zip(found.per_class, *columns, strict=True)):
        assert (stats.name, stats.support) == (CLASSES[k], n)
        assert stats.num_predicted == int((predicted == k).sum())
        for value, expected in ((stats.precision, p), (stats.recall, r), (stats.f1, f)):
            assert value == (None if math.isnan(expected) else pytest.approx(expected))
    absent, never, unknown = (found.per_class[k] for k in (ABSENT, NEVER_PREDICTED, UNKNOWN))
    assert (absent.recall, absent.precision, absent.f1) == (None, 0, 0)
    assert (never.recall, never.precision, never.f1) == (0, None, 0)
    assert (unknown.recall, unknown.precision, unknown.f1) == (None, None, None)


def test_confusion_is_scikit_learns(case: tuple[Tensor, Tensor, Evaluation]) -> None:
    probabilities, target, found = case
    expected = reference.confusion_matrix(target, probabilities.argmax(1), labels=list(range(K)))
    np.testing.assert_array_equal(np.array(found.confusion_matrix), expected)


def test_the_order_of_images_does_not_matter() -> None:
    probabilities, target = _random(9)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    one = evaluate_probabilities(probabilities, target, classes=CLASSES)
    other = evaluate_probabilities(probabilities[order], target[order], classes=CLASSES)
    assert one.per_class == other.per_class
    assert one.metrics == pytest.approx(other.metrics)


@pytest.mark.parametrize(("num_classes", "expected"), [(2, False), (5, False), (6, True)])
def test_top5_is_given_where_it_can_fail(num_classes: int, expected: bool) -> None:
    found = evaluate_probabilities(
        torch.eye(num_classes), torch.arange(num_classes), classes=CLASSES[:num_classes]
    )
    assert ("top5_accuracy" in found.metrics) is expected
    assert found.metrics["accuracy"] == 1


def test_a_certain_mistake_has_a_finite_loss() -> None:
    found = evaluate_probabilities(torch.eye(2), torch.tensor([1, 0]), classes=CLASSES[:2])
    assert math.isfinite(found.metrics["loss"])
    assert found.metrics["accuracy"] == 0


def test_the_rarest_third_goes_by_training_images_where_they_are_known() -> None:
    probabilities, target = _random(3)
    predicted = probabilities.argmax(1)
    counts = [50, 4, 30, 3, 40, 2, 60, 70]  # the rarest: 5, which is absent, and 3
    found = evaluate_probabilities(probabilities, target, classes=CLASSES, train_counts=counts)
    assert found.rarest_classes == ("class 5", "class 3")
    expected = reference.recall_score(target, predicted, labels=[3], average="macro")
    assert found.metrics["rarest_third_recall"] == pytest.approx(expected)
    assert [stats.train_images for stats in found.per_class] == counts
    assert found.undefined_metrics == ()
    counts = [50, 30, 30, 30, 40, 2, 60, 3]  # the rarest: 5 and 7, which are both absent
    found = evaluate_probabilities(probabilities, target, classes=CLASSES, train_counts=counts)
    assert found.rarest_classes == ("class 5", "class 7")
    assert "rarest_third_recall" not in found.metrics
    assert found.undefined_metrics == ("rarest_third_recall",)


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 1), (3, 1), (5, 1), (6, 2), (10, 3)])
def test_a_third_is_at_least_one_class_and_ties_go_by_their_order(
    num_classes: int, expected: int
) -> None:
    classes = [f"class {k}" for k in range(num_classes)]
    for counts in (None, [7] * num_classes):
        found = evaluate_probabilities(
            torch.eye(num_classes), torch.arange(num_classes), classes=classes, train_counts=counts
        )
        assert found.rarest_classes == tuple(classes[:expected])
        assert found.metrics["rarest_third_recall"] == 1


def test_intervals_solve_the_equation_that_defines_them(
    case: tuple[Tensor, Tensor, Evaluation],
) -> None:
    probabilities, target, found = case
    right = probabilities.argmax(1) == target

    def holds(bounds: tuple[float, float], count: int, total: int) -> None:
        # both ends p solve (share - p)^2 = z^2 p (1 - p) / n, which defines Wilson's interval
        for p in bounds:
            assert (count / total - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / total)

    holds(found.accuracy_interval, int(right.sum()), len(target))
    for k, stats in enumerate(found.per_class):
        if stats.support == 0:
            assert stats.recall_interval is None
        elif 0 < int(right[target == k].sum()) < stats.support:
            assert stats.recall_interval is not None
            holds(stats.recall_interval, int(right[target == k].sum()), stats.support)


def test_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_probabilities(torch.empty(0, 2), torch.empty(0).long(), classes=CLASSES[:2])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_calibration_error_is_that_of_a_plain_loop(seed: int) -> None:
    probabilities, target = _random(seed)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), target.tolist(), strict=True):
        sureness = max(row)
        right = row.index(sureness) == label
        bins.setdefault(math.ceil(sureness * 15), []).append((sureness, right))
    assert len(bins) > 5
    gaps = [
        abs(sum(sureness for sureness, _ in entries) - sum(right for _, right in entries))
        for entries in bins.values()
    ]
    assert calibration_error(probabilities, target) == pytest.approx(sum(gaps) / 200, abs=1e-6)


def test_the_log_loss_bears_what_is_impossible() -> None:
    found = log_loss(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]))
    smallest = math.log(torch.finfo(torch.float32).tiny)
    assert found == pytest.approx((math.log(2) - smallest) / 2)
