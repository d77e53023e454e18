"""Naming the class of each image."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError, DataError, RunFolderError, StorageError
from finetune.inference.predictor import Predictor
from tests.conftest import CLASSES
from tests.support.helpers import Recorder, names_in, tiny_disk, write_images

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

NAMES = ("a, b.png", "nested/deep/é.PNG", 'quote".png')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return images with awkward names at several depths, and two files that are none."""
    root = write_images(tmp_path / "new", *NAMES)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").touch()
    (root / ".hidden.png").touch()
    return root


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_csv_has_a_row_a_file(trained: FitResult, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "predictions.csv"
    recorder = Recorder()
    finetune.predict(trained.run_dir, folder, output=output, device="cpu", reporter=recorder)
    rows = read(output)
    assert list(rows[0]) == ["path", "label", "probability", "error"]
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows) == 5
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    for name in NAMES:
        row = by_path[str(folder / name)]
        expected = predictor.predict_proba([folder / name])[0]
        assert row["label"] == CLASSES[int(expected.argmax())]
        assert float(row["probability"]) == pytest.approx(float(expected.max()), abs=1e-6)
        assert row["error"] == ""
    assert by_path[str(folder / "broken.jpg")] == {
        "path": str(folder / "broken.jpg"),
        "label": "",
        "probability": "",
        "error": "not an image, whatever its name says",
    }
    assert by_path[str(folder / "notes.txt")]["error"].startswith("not an image format")
    assert len(recorder.warnings) == 1
    assert "2 files without prediction" in recorder.warnings[0]
    assert names_in(output.parent) == ["predictions.csv"]


@pytest.mark.parametrize(("top_k", "ranks"), [(2, 2), (3, 3), (10, 3)])
def test_top_k_gives_a_pair_of_columns_a_rank(
    trained: FitResult, folder: Path, tmp_path: Path, top_k: int, ranks: int
) -> None:
    output = tmp_path / "out.csv"
    finetune.predict(trained.run_dir, folder, output=output, top_k=top_k, device="cpu")
    rows = read(output)
    tails = ["", "_2", "_3"][:ranks]
    assert list(rows[0]) == [
        "path", *(name + tail for tail in tails for name in ("label", "probability")), "error",
    ]  # fmt: skip
    for row in rows:
        if row["error"]:
            assert set(row.values()) == {row["path"], "", row["error"]}
            continue
        shares = [float(row[f"probability{tail}"]) for tail in tails]
        assert shares == sorted(shares, reverse=True)
        assert len({row[f"label{tail}"] for tail in tails}) == ranks
        if ranks == 3:
            assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_tta_averages_over_the_mirror_image_and_says_so(
    mirrored: Path, folder: Path, trained: FitResult
) -> None:
    result = finetune.predict(mirrored, folder, top_k=3, device="cpu", tta=True)
    assert result.to_json()["tta"] is True
    assert finetune.predict(mirrored, folder, device="cpu").to_json()["tta"] is False
    predictor = Predictor(load_model(mirrored), device="cpu", tta=True)
    for prediction in result.predictions:
        row = predictor.predict_proba([Path(prediction.path)])[0]
        expected = sorted(row.tolist(), reverse=True)
        assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match=r"--tta cannot apply .*augment\.name=none"):
        finetune.predict(trained.run_dir, folder, device="cpu", tta=True)


def test_one_file_is_enough(trained: FitResult, folder: Path) -> None:
    result = finetune.predict(trained.run_dir, folder / NAMES[0], device="cpu")
    assert [p.path for p in result.predictions] == [str(folder / NAMES[0])]
    assert result.rejected == ()


def test_json_holds_the_same_as_the_csv(trained: FitResult, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    result = finetune.predict(trained.run_dir, folder, output=output, top_k=2, device="cpu")
    tree = json.loads(json.dumps(result.to_json()))
    assert (tree["num_images"], tree["output"]) == (3, str(output))
    rows = {row["path"]: row for row in read(output)}
    for entry in tree["predictions"]:
        row = rows[entry["path"]]
        assert entry["label"] == entry["top"][0]["label"] == row["label"]
        assert entry["top"][1]["label"] == row["label_2"]
        assert entry["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
    assert {r["path"]: r["reason"] for r in tree["rejected"]} == {
        path: row["error"] for path, row in rows.items() if row["error"]
    }


def test_a_name_that_is_not_utf8_is_listed_in_a_file_that_is(
    trained: FitResult, folder: Path, tmp_path: Path
) -> None:
    bad = os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    shutil.copy(folder / NAMES[0], bad)
    output = tmp_path / "out.csv"
    result = finetune.predict(trained.run_dir, folder, output=output, device="cpu")
    json.dumps(result.to_json(), ensure_ascii=False).encode()
    errors = [row["path"] for row in read(output) if "not UTF-8" in row["error"]]
    assert errors == [f"{folder}/caf\\xe9.png"]


def test_a_checkpoint_alone_and_the_bundle_say_the_same(
    trained: FitResult, folder: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "model.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    by_bundle = finetune.predict(trained.run_dir / "bundle", folder, top_k=3, device="cpu")
    assert finetune.predict(alone, folder, top_k=3, device="cpu") == by_bundle


def test_the_batch_size_does_not_matter(trained: FitResult, insects: Path) -> None:
    one, all_ = (
        finetune.predict(trained.run_dir, insects, device="cpu", batch_size=size).predictions
        for size in (1, 64)
    )
    for a, b in zip(one, all_, strict=True):
        assert (a.path, a.labels) == (b.path, b.labels)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_a_full_disk_leaves_the_old_csv(trained: FitResult, insects: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", size="4k") as disk:
        output = disk / "out.csv"
        output.write_text("old")
        with pytest.raises(StorageError, match=r"out\.csv: no space is left"):
            finetune.predict(trained.run_dir, insects, output=output, top_k=3, device="cpu")
        assert output.read_text() == "old"
        assert names_in(disk) == ["out.csv"]


def test_nothing_readable_is_an_error_that_says_why(trained: FitResult, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"No image in .* can be read: 1 empty file \(as .*a\.png"):
        finetune.predict(trained.run_dir, tmp_path, device="cpu")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="holds no image"):
        finetune.predict(trained.run_dir, tmp_path, device="cpu")


def test_an_output_that_is_a_folder_is_refused(
    trained: FitResult, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"is a folder; name a \.csv file"):
        finetune.predict(trained.run_dir, folder, output=tmp_path, device="cpu")


def test_a_model_that_is_none_is_said_before_a_million_files_are_checked(folder: Path) -> None:
    class Never(Recorder):
        def start(self, task: str, total: int) -> None:
            raise AssertionError(task)

    with pytest.raises(RunFolderError, match="holds no model"):
        finetune.predict(folder, folder, device="cpu", reporter=Never())
