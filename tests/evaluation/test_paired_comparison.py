"""Tests of ``finetune.evaluation.paired_comparison``, against scikit-learn, scipy and counting."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, log_loss

from finetune.evaluation.paired_comparison import (
    compare_paired,
    compute_bonett_price_interval,
)

NUM_CLASSES = 4


def draw(
    seed: int, *, num_images: int = 150, skill: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities (N, K) that favour the true class by ``skill``, and the classes (N,)."""
    random = np.random.default_rng(seed)
    target = np.random.default_rng(7).integers(0, NUM_CLASSES, num_images)
    logits = random.normal(size=(num_images, NUM_CLASSES))
    logits[np.arange(num_images), target] += skill
    table = np.exp(logits)
    return table / table.sum(axis=1, keepdims=True), target


def test_compare_paired_values_equal_scikit_learn() -> None:
    before, target = draw(0)
    after, _ = draw(1, skill=2.0)
    result = compare_paired(before, after, target, seed=0)
    expected = {
        "accuracy": [(table.argmax(1) == target).mean() for table in (before, after)],
        "macro_f1": [
            f1_score(target, table.argmax(1), average="macro") for table in (before, after)
        ],
        "loss": [log_loss(target, table, labels=range(NUM_CLASSES)) for table in (before, after)],
    }
    for name, (first, second) in expected.items():
        difference = result.differences[name]
        assert difference.before == pytest.approx(first)
        assert difference.after == pytest.approx(second)
        assert difference.difference == pytest.approx(second - first)
        assert difference.low < difference.difference < difference.high
        assert difference.verdict == "better"
    only_second = ((after.argmax(1) == target) & (before.argmax(1) != target)).sum()
    assert result.num_only_second == only_second
    reverse = compare_paired(after, before, target, seed=0)
    assert {diff.verdict for diff in reverse.differences.values()} == {"worse"}


def test_compare_paired_interval_of_loss_equals_scipy_bootstrap() -> None:
    before, target = draw(0)
    after, _ = draw(1, skill=1.3)
    rows = np.arange(len(target))
    change = np.log(before[rows, target]) - np.log(after[rows, target])
    reference = bootstrap(
        (change,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    result = compare_paired(before, after, target, seed=0, num_resamples=20_000)
    loss = result.differences["loss"]
    width = reference.high - reference.low
    assert loss.low == pytest.approx(reference.low, abs=0.03 * width)
    assert loss.high == pytest.approx(reference.high, abs=0.03 * width)


def score_macro_f1(predicted: NDArray[np.int64], target: NDArray[np.int64]) -> float:
    """Return the macro F1 of images of all classes, as scikit-learn does in a hundredth of it."""
    scores = []
    for label in range(NUM_CLASSES):
        hits = ((predicted == label) & (target == label)).sum()
        scores.append(2 * hits / ((predicted == label).sum() + (target == label).sum()))
    return float(np.mean(scores))


def test_compare_paired_interval_of_macro_f1_equals_resampled_images() -> None:
    before, target = draw(0, num_images=80)
    after, _ = draw(1, num_images=80, skill=1.5)
    random = np.random.default_rng(3)
    assert score_macro_f1(after.argmax(1), target) == pytest.approx(
        f1_score(target, after.argmax(1), average="macro")
    )
    changes = []
    for _ in range(1_500):
        rows = random.integers(0, 80, 80)
        scores = [score_macro_f1(t[rows].argmax(1), target[rows]) for t in (before, after)]
        changes.append(scores[1] - scores[0])
    low, high = np.percentile(changes, (2.5, 97.5))
    macro_f1 = compare_paired(before, after, target, seed=0).differences["macro_f1"]
    assert macro_f1.low == pytest.approx(low, abs=0.08 * (high - low))
    assert macro_f1.high == pytest.approx(high, abs=0.08 * (high - low))


def test_compare_paired_equal_models_differ_by_chance_only() -> None:
    table, target = draw(0)
    result = compare_paired(table, table, target, seed=0)
    assert {diff.verdict for diff in result.differences.values()} == {"no difference beyond chance"}
    accuracy = result.differences["accuracy"]
    assert accuracy.low < 0 < accuracy.high, "no image differs, which is no proof of equality"
    assert result.mcnemar_p_value == 1


def test_compare_paired_groups_count_as_one_image_each() -> None:
    before, target = draw(0, num_images=40)
    after, _ = draw(1, num_images=40, skill=1.5)
    alone = compare_paired(before, after, target, seed=0)
    groups = np.tile(np.arange(40), 4)
    many_before, many_after = (np.tile(table, (4, 1)) for table in (before, after))
    many_target = np.tile(target, 4)
    copies = compare_paired(many_before, many_after, many_target, seed=0, groups_N=groups)
    naive = compare_paired(many_before, many_after, many_target, seed=0)
    for name in ("macro_f1", "loss"):
        assert copies.differences[name].low == pytest.approx(alone.differences[name].low)
    widths = [
        result.differences["accuracy"].high - result.differences["accuracy"].low
        for result in (alone, copies, naive)
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.6 * widths[0]


def test_compare_paired_same_seed_gives_same_interval_in_any_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, target = draw(0)
    after, _ = draw(1)
    whole = compare_paired(before, after, target, seed=3)
    monkeypatch.setattr("finetune.evaluation.paired_comparison._MAX_CELLS", 10_000)
    assert compare_paired(before, after, target, seed=3) == whole
    assert compare_paired(before, after, target, seed=4) != whole


def test_compare_paired_without_images_raises() -> None:
    with pytest.raises(ValueError, match="image"):
        compare_paired(np.ones((0, 2)), np.ones((0, 2)), np.zeros(0, np.int64), seed=0)


@pytest.mark.parametrize(("rates", "num_images"), [((0.02, 0.02), 60), ((0.03, 0.1), 100)])
def test_bonett_price_interval_covers_the_true_difference(
    rates: tuple[float, float], num_images: int
) -> None:
    random = np.random.default_rng(0)
    same = 1 - sum(rates)
    draws = random.multinomial(num_images, (*rates, same), size=4_000)
    intervals = [
        compute_bonett_price_interval(int(first), int(second), num_images)
        for first, second, _ in draws
    ]
    covered = np.mean([low <= rates[1] - rates[0] <= high for low, high in intervals])
    assert 0.93 < covered <= 1


def test_bonett_price_interval_changes_sign_with_the_models() -> None:
    low, high = compute_bonett_price_interval(3, 9, 100)
    assert compute_bonett_price_interval(9, 3, 100) == pytest.approx((-high, -low))
