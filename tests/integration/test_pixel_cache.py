"""Runs on cached pixels, compared with runs on the files."""

from pathlib import Path

import pytest

import finetune
from finetune.commands.fit.fit import FitResult
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    drop_times,
    load_checkpoint,
    load_weights,
    read_rows,
)

pytestmark = pytest.mark.runs


def run_fit(insects: Path, output: Path, **settings: object) -> FitResult:
    """Return a run of three epochs on images of 40 x 36 pixels."""
    values = {"optim__lr": 0.01, "trainer__epochs": 3, **settings}
    return finetune.fit(create_small_config(data__path=str(insects), output=str(output), **values))


def read_rows_without_seconds(run: Path) -> list[dict[str, str]]:
    return [drop_times(row) for row in read_rows(run)]


@pytest.mark.parametrize("augment", ["none", "medium"])
def test_fit_on_cached_pixels_is_bit_identical_to_files(
    augment: str, insects: Path, tmp_path: Path
) -> None:
    # the smallest crop needs more pixels than the images have, so that they are cached in full size
    on, off = (
        run_fit(insects, tmp_path / cache, data__cache=cache, augment__name=augment)
        for cache in ("on", "off")
    )
    assert on.plan["cache"]["folder"] is not None
    assert off.plan["cache"]["folder"] is None
    assert on.metrics == off.metrics
    for name in ("last", "best"):
        assert_same_bits(load_weights(on.run_dir, name), load_weights(off.run_dir, name))
    assert read_rows_without_seconds(on.run_dir) == read_rows_without_seconds(off.run_dir)
    assert len({row["train/loss"] for row in read_rows(on.run_dir)}) == 3


def test_fit_on_shrunk_pixels_trains_on_them_and_validates_on_files(
    insects: Path, tmp_path: Path
) -> None:
    small = {"data__cache": "on", "data__cache_shorter_side": 20}
    on = run_fit(insects, tmp_path / "on", augment__name="light", **small)
    off = run_fit(insects, tmp_path / "off", augment__name="light", data__cache="off")
    losses = [[row["train/loss"] for row in read_rows(run.run_dir)] for run in (on, off)]
    assert losses[0] != losses[1], "shrunk pixels differ from those of the files"
    for run in (on, off):
        # final metrics are computed from the files, with the code of ``evaluate``
        best = read_rows(run.run_dir)[load_checkpoint(run.run_dir, "best")["epoch"]]
        assert len(run.metrics["val"]) >= 4
        for name, value in run.metrics["val"].items():
            assert float(best[f"val/{name}"]) == pytest.approx(value, abs=1e-5), name
