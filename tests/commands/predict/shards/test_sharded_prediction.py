"""Tests of predictions in parts: shares of processes, stops, and refusals."""

from __future__ import annotations

import signal
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import dataset, parquet
from torch import Tensor

import finetune
from finetune.cli.main import run
from finetune.commands.predict.predict_options import PredictOptions
from finetune.commands.predict.shards.sharded_prediction import ShardsResult, predict_shards
from finetune.commands.predict.shards.work_share import (
    NUM_TASKS_VARIABLE,
    ShardRule,
    WorkShare,
    detect_share,
)
from finetune.data.streams.stream_image import StreamImage
from finetune.errors import DataError, RunFolderError
from finetune.inference.predictor import Predictor
from finetune.types import Reporter
from tests.support.processes import start_process


def predict_slowly(words: list[str]) -> None:
    """Run a command line whose network takes its time."""
    compute = Predictor.compute_logits

    def compute_slowly(self: Predictor, views: Sequence[Tensor]) -> Tensor:
        time.sleep(0.03)
        return compute(self, views)

    Predictor.compute_logits = compute_slowly  # type: ignore[method-assign,assignment]
    run(words)


def predict(
    model: Path, images: Path, folder: Path, process: int = 0, of: int = 1, **settings: Any
) -> ShardsResult:
    part_size = settings.pop("part_size", None)
    return predict_shards(
        [model], [images], folder,
        options=PredictOptions(device="cpu", batch_size=4, **settings),
        part_size=part_size, share=WorkShare(process, of), reporter=Reporter(),
    )  # fmt: skip


def read_rows(folder: Path) -> list[tuple[Any, ...]]:
    """Return path, label, probability and error of all rows, as readers of the folder see them."""
    rows = dataset.dataset(folder).to_table().to_pylist()
    keys = ("path", "label", "probability", "error")
    return sorted(tuple(row[key] for key in keys) for row in rows)


def list_parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def assert_same(rows: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    """Assert that rows are those of one undisturbed process."""
    assert [(row[0], row[1], row[3]) for row in rows] == [(r[0], r[1], r[3]) for r in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row[2] is None or row[2] == pytest.approx(other[2], abs=1e-6)


@pytest.fixture(scope="module")
def expected(tiny: Path, many: Path) -> list[tuple[Any, ...]]:
    """Return the rows of the prediction of all images at once."""
    result = finetune.predict(tiny, many, device="cpu", batch_size=4)
    rows: list[tuple[Any, ...]] = [
        (p.path, p.labels[0], p.probabilities[0], None) for p in result.predictions
    ]
    return sorted(rows + [(entry.path, None, None, entry.reason) for entry in result.rejected])


def test_processes_share_the_images_and_a_rerun_has_nothing_to_do(
    tiny: Path, many: Path, tmp_path: Path, expected: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "parts"
    results = [predict(tiny, many, folder, process, 3, part_size=5) for process in (2, 0, 1)]
    assert [result.is_complete for result in results] == [False, False, True]
    assert sum(result.num_images for result in results) == 38
    assert all(result.num_images > 0 for result in results)
    assert_same(read_rows(folder), expected)
    assert len(expected) == 40
    sizes = [parquet.read_metadata(file).num_rows for file in sorted(folder.glob("*.parquet"))]
    assert max(sizes) == 5
    again = predict(tiny, many, folder, 0, 1)
    assert (again.num_images, again.num_written, again.is_complete) == (0, 0, True)
    assert again.num_found == len(sizes)


def test_missing_parts_alone_are_done_by_another_number_of_processes(
    tiny: Path, many: Path, tmp_path: Path, expected: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "parts"
    predict(tiny, many, folder, 0, 2, part_size=4)
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    removed = sorted(before)[1]
    (folder / removed).unlink()
    results = [predict(tiny, many, folder, process, 5) for process in range(5)]
    assert results[-1].is_complete
    assert sum(result.num_written for result in results) == len(list_parts(folder)) - (
        len(before) - 1
    )
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} == {removed}
    assert_same(read_rows(folder), expected)


def test_killed_and_continued_prediction_equals_an_undisturbed_one(
    tiny: Path, many: Path, tmp_path: Path, expected: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "parts"
    words = ["predict", str(tiny), str(many), "--shards", str(folder), "--part-size", "4",
             "--batch-size", "2", "--device", "cpu"]  # fmt: skip
    with start_process(predict_slowly, words) as child:
        end = time.monotonic() + 120
        while len(list_parts(folder)) < 3:
            assert child.is_alive(), "the child ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    assert 3 <= len(kept) < 10
    assert read_rows(folder), "parts that are there can be read"
    result = predict(tiny, many, folder)
    assert result.is_complete
    assert result.num_found == len(kept)
    assert result.num_images < 38
    for name, time_ns in kept.items():
        assert (folder / name).stat().st_mtime_ns == time_ns
    rows = read_rows(folder)
    assert len({row[0] for row in rows}) == len(rows) == 40
    assert_same(rows, expected)
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert hidden == [], "files of the killed process are removed"


def test_another_model_options_or_images_are_refused_with_what_differs(
    tiny: Path, many: Path, tmp_path: Path, other: Path
) -> None:
    folder = tmp_path / "parts"
    predict(tiny, many, folder)
    with pytest.raises(RunFolderError, match=r"--top-k \(before: 1; now: 2\)"):
        predict(tiny, many, folder, top_k=2)
    with pytest.raises(RunFolderError, match=r"--part-size \(before: 10,000; now: 7\)"):
        predict(tiny, many, folder, part_size=7)
    with pytest.raises(RunFolderError, match="the model"):
        predict(other, many, folder)
    with pytest.raises(RunFolderError, match=r"the list of images.*40 and 1"):
        predict(tiny, many / "00.png", folder)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a.txt").touch()
    with pytest.raises(RunFolderError, match=r"used is not empty"):
        predict(tiny, many, tmp_path / "used")
    (folder / "_manifest.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"_manifest\.json is damaged"):
        predict(tiny, many, folder)


def test_enough_tar_files_are_divided_among_processes_without_reading_those_of_others(
    tiny: Path, many: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    write_tars(shards, many, 4)
    files = sorted(many.iterdir())
    folder = tmp_path / "parts"
    first = predict(tiny, shards, folder, 0, 2, part_size=6)
    assert first.num_images + first.num_unreadable == 20
    assert {Path(row[0]).parent.name for row in read_rows(folder)} == {"0.tar", "2.tar"}
    assert not first.is_complete
    last = predict(tiny, shards, folder, 0, 1)
    assert last.is_complete
    assert last.num_images + last.num_unreadable == 20
    names = [Path(row[0]).name for row in read_rows(folder)]
    assert sorted(names) == [file.name for file in files]


def write_tars(folder: Path, photos: Path, num_files: int) -> None:
    """Write the images of a folder into tar files."""
    folder.mkdir()
    files = sorted(photos.iterdir())
    for number in range(num_files):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for file in files[number::num_files]:
                tar.add(file, file.name)


def test_images_of_standard_input_cannot_be_divided(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--list"):
        predict(tiny, Path("-"), tmp_path / "parts")


def test_detect_share_of_job_arrays_and_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_share({}) == WorkShare()
    array = {
        "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }  # fmt: skip
    assert detect_share(array) == WorkShare(2, 4)
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    assert detect_share({}) == WorkShare(1, 2, 1, 2)
    assert detect_share(array) == WorkShare(5, 8, 1, 2)


@pytest.mark.parametrize(
    ("tasks", "size", "shares"),
    [
        ((1, 4, 7), None, [(0, 7), (3, 7), (6, 7)]),
        ((0, 2, 3), None, [(0, 4), (2, 4), (3, 4)]),
        ((3, 7), "16", [(2, 16), (6, 16)]),
        ((3, 4), "16", [(0, 2), (1, 2)]),
        ((3,), "16", [(0, 1)]),
        ((9, 20), "16", [(8, 20), (19, 20)]),
    ],
)
def test_tasks_of_an_array_with_gaps_have_a_share_each(
    tasks: tuple[int, ...], size: str | None, shares: list[tuple[int, int]]
) -> None:
    env = {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in {
        "MIN": min(tasks), "MAX": max(tasks), "STEP": 1, "COUNT": len(tasks)
    }.items()}  # fmt: skip
    env |= {} if size is None else {NUM_TASKS_VARIABLE: size}
    found = [detect_share({**env, "SLURM_ARRAY_TASK_ID": str(task)}) for task in tasks]
    assert [(share.process, share.num_processes) for share in found] == shares


def test_repair_of_two_tasks_of_an_array_completes_their_parts(
    tiny: Path, many: Path, tmp_path: Path, expected: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "parts"
    for process in (0, 2, 4):
        predict(tiny, many, folder, process, 5)
    array = {"SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "4",
             "SLURM_ARRAY_TASK_COUNT": "2", NUM_TASKS_VARIABLE: "5"}  # fmt: skip
    shares = [detect_share({**array, "SLURM_ARRAY_TASK_ID": task}) for task in ("2", "4")]
    results = [predict(tiny, many, folder, s.process, s.num_processes) for s in shares]
    assert [result.num_found for result in results] == [0, 0]
    assert results[-1].is_complete
    assert_same(read_rows(folder), expected)


def test_shards_have_alike_numbers_of_images_by_the_hash_of_their_names() -> None:
    rule = ShardRule(4, 0)
    shards = [rule.get_shard(StreamImage(f"a/{number}.jpg")) for number in range(4000)]
    assert all(850 < shards.count(shard) < 1150 for shard in range(4))
    assert shards == [rule.get_shard(StreamImage(f"a/{number}.jpg")) for number in range(4000)]
