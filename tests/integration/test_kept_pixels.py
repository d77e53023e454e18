"""Whole runs on kept pixels end as runs on the files do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune as api
from finetune.commands.fit.fit import FitResult
from tests.support.networks import one_thread
from tests.support.runs import assert_same_bits, checkpoint, rows, small_config, weights


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def fitted(insects: Path, output: Path, **settings: object) -> FitResult:
    """Return a run of three epochs on images of 40 x 36 pixels."""
    given = {"optim__lr": 0.01, "trainer__epochs": 3, **settings}
    config = small_config(data__path=str(insects), output=str(output), **given)
    result: FitResult = api.fit(config)
    return result


def without_seconds(run: Path) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in rows(run)]


@pytest.mark.parametrize("augment", ["none", "medium"])
def test_a_run_on_kept_pixels_ends_with_the_bits_of_a_run_on_files(
    augment: str, insects: Path, tmp_path: Path
) -> None:
    # the smallest crop needs more than the images have, so that they are kept as they are
    on, off = (
        fitted(insects, tmp_path / cache, data__cache=cache, augment__name=augment)
        for cache in ("on", "off")
    )
    assert on.plan["cache"]["folder"] is not None
    assert off.plan["cache"]["folder"] is None
    assert on.metrics == off.metrics
    for name in ("last", "best"):
        assert_same_bits(weights(on.run_dir, name), weights(off.run_dir, name))
    assert without_seconds(on.run_dir) == without_seconds(off.run_dir)
    assert len({row["train/loss"] for row in rows(on.run_dir)}) == 3


def test_shrunk_pixels_are_trained_on_and_validation_is_that_of_the_files(
    insects: Path, tmp_path: Path
) -> None:
    small = {"data__cache": "on", "data__cache_shorter_side": 20}
    on = fitted(insects, tmp_path / "on", augment__name="light", **small)
    off = fitted(insects, tmp_path / "off", augment__name="light", data__cache="off")
    losses = [[row["train/loss"] for row in rows(run.run_dir)] for run in (on, off)]
    assert losses[0] != losses[1], "pixels of another size are other pixels"
    for run in (on, off):
        # the final numbers are made of the files by the code that ``evaluate`` uses
        best = rows(run.run_dir)[checkpoint(run.run_dir, "best")["epoch"]]
        assert len(run.metrics["val"]) >= 4
        for name, value in run.metrics["val"].items():
            assert float(best[f"val/{name}"]) == pytest.approx(value, abs=1e-5), name
