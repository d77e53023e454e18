"""Validation losses that explode, and those of ordinary and overfitted runs, which do not."""

import math

import pytest

from finetune.training.curves.loss_explosion import find_loss_explosion


def build_rows(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "val/loss": loss} for epoch, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "losses", [(0.3, 0.2, 0.25), (1.1, 1.0, 0.9), (0.2, 0.9, 2.5), (0.3, math.nan), (0.3,), ()]
)
def test_ordinary_and_overfitted_runs_have_not_exploded(losses: tuple[float, ...]) -> None:
    assert find_loss_explosion(build_rows(*losses), num_classes=3) is None


def test_explosion_has_its_epoch_and_the_best_loss_before() -> None:
    explosion = find_loss_explosion(build_rows(0.4, 0.3, 52.0, 60.0), num_classes=3)
    assert explosion is not None
    assert explosion.has_lasted
    assert explosion.describe() == (
        "val/loss exploded in epoch 2, from 0.3000 to 52 (guessing all classes alike: 1.0986), "
        "and was 60 after the last epoch."
    )


def test_losses_that_are_not_finite_are_not_the_best_before() -> None:
    explosion = find_loss_explosion(build_rows(math.nan, 0.3, 52.0), num_classes=3)
    assert explosion is not None
    assert explosion.before == 0.3


def test_explosion_that_is_made_up_for_has_not_lasted() -> None:
    explosion = find_loss_explosion(build_rows(0.4, 30.0, 0.2), num_classes=3)
    assert explosion is not None
    assert not explosion.has_lasted


def test_loss_of_many_classes_is_compared_with_guessing_among_them() -> None:
    rows = build_rows(4.0, 20.0)
    assert find_loss_explosion(rows, num_classes=100) is None
    assert find_loss_explosion(rows, num_classes=2) is not None
    assert find_loss_explosion(rows, num_classes=100, is_multi_label=True) is not None
