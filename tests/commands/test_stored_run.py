"""Tests of stored runs: on tables whose rows have moved since, and code in the run folder."""

import base64
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import finetune
from finetune.commands.fit.fit import plan_resume
from finetune.commands.report.collect import read_facts
from finetune.commands.report.photos.collect_photos import add_photos
from finetune.commands.stored_run import check_stored_code, read_stored_tree
from finetune.config.load import build_config, dump_config
from finetune.errors import DataError, RunFolderError
from finetune.system.run_folder import RunFolder
from tests.support.parquet import encode_noise, write_table
from tests.support.runs import get_class_evaluation

Rows = list[tuple[bytes, str]]
ROWS: Rows = [(encode_noise(seed), "cat" if seed % 2 else "dog") for seed in range(16)]
EDITS = [
    pytest.param([*ROWS[:2], (encode_noise(99), "cat"), *ROWS[2:]], id="inserted"),
    pytest.param([*ROWS[:2], *ROWS[3:]], id="deleted"),
]


def write_csv(file: Path, rows: Rows) -> None:
    with file.open("w", newline="") as stream:
        texts = [(base64.b64encode(image).decode(), label) for image, label in rows]
        csv.writer(stream).writerows([("image", "label"), *texts])


def write_parquet(file: Path, rows: Rows) -> None:
    images, labels = zip(*rows, strict=True)
    write_table(file, {"image": pa.array(images), "label": pa.array(labels)})


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".csv": write_csv, ".parquet": write_parquet}


@pytest.fixture(scope="module", params=WRITERS)
def table_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """Yield a table and a run of one epoch on it; tests may write other rows into the table."""
    folder = tmp_path_factory.mktemp("table")
    file = folder / f"photos{request.param}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(folder / "cache"))
        WRITERS[request.param](file, ROWS)
        tree = {
            "data": {"path": str(file), "image_size": 32, "num_workers": 0},
            "model": {"backbone": "test_resnet", "weights": "random"},
            "trainer": {"epochs": 1, "batch_size": 4, "accelerator": "cpu"},
            "optim": {"lr": 0.01},
            "report": {"enabled": "off"},
            "output": str(folder / "run"),
        }
        yield file, finetune.fit(build_config(tree)).run_dir


@pytest.mark.parametrize("rows", EDITS)
def test_resume_refuses_a_table_whose_rows_have_moved(
    rows: Rows, table_run: tuple[Path, Path]
) -> None:
    file, run = table_run
    write = WRITERS[file.suffix]
    write(file, ROWS)
    plan_resume(run, assignments={"trainer.epochs": 2})
    write(file, rows)
    with pytest.raises(DataError, match=r"photos\.\w+ has changed since the run began: 1\d of 16"):
        plan_resume(run, assignments={"trainer.epochs": 2})


@pytest.mark.parametrize("rows", EDITS)
def test_report_leaves_out_pictures_of_a_table_whose_rows_have_moved(
    rows: Rows, table_run: tuple[Path, Path]
) -> None:
    file, run = table_run
    WRITERS[file.suffix](file, rows)
    facts = add_photos(RunFolder(run), read_facts(run), seconds=0.1)
    assert facts.photos is not None
    (skipped,) = facts.photos.skipped
    assert "Pictures are left out" in skipped
    assert "has changed since the run began" in skipped


@pytest.mark.parametrize("rows", EDITS)
def test_evaluate_finds_the_images_of_a_table_whose_rows_have_moved(
    rows: Rows, table_run: tuple[Path, Path]
) -> None:
    """The images of the split are found by content, each with its label."""
    file, run = table_run
    write = WRITERS[file.suffix]
    write(file, ROWS)
    before = get_class_evaluation(finetune.evaluate(run))
    write(file, rows)
    after = get_class_evaluation(finetune.evaluate(run))
    assert after.metrics["loss"] == pytest.approx(before.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("key", ["loss.name", "model.backbone", "lr_schedule.name"])
def test_resume_refuses_code_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "brought_along.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    config = build_config(
        {"data": {"path": "photos"}}, assignments={key: "brought_along:build", "output": str(run)}
    )
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (run / "manifest.csv").touch()
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    message = rf"names code, {key}=brought_along:build, that is in the same folder .*brought"
    with pytest.raises(RunFolderError, match=message):
        plan_resume(run)
    assert "brought_along" not in sys.modules
    # code beside the folder is that of the user
    (run / "brought_along.py").rename(tmp_path / "brought_along.py")
    monkeypatch.syspath_prepend(tmp_path)
    check_stored_code(run, read_stored_tree(RunFolder(run)))


@pytest.mark.parametrize(
    ("part", "marker"),
    [("trials/001", "study.json"), ("folds/1", "folds.csv"), ("refit", "folds.csv")],
)
def test_parts_name_no_code_in_the_folder_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, marker: str
) -> None:
    run = tmp_path / part
    run.mkdir(parents=True)
    (tmp_path / "brought_along.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"loss": {"name": "brought_along:build"}}
    check_stored_code(run, tree)  # the folder of the user
    (tmp_path / marker).touch()
    with pytest.raises(RunFolderError, match=r"names code, loss\.name=brought_along:build"):
        check_stored_code(run, tree)
    assert "brought_along" not in sys.modules
