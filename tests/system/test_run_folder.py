"""The folder of a run."""

import os
import re
import threading
import time
from pathlib import Path

import pytest

from finetune.errors import RunFolderError, StorageError
from finetune.system import run_folder
from tests.support.helpers import names_in, tiny_disk


def make(path: Path) -> run_folder.RunFolder:
    return run_folder.create(
        path,
        config="seed: 0\n",
        manifest="path\n",
        rejected="path,reason\n",
        audit_json="{}\n",
        audit_csv="finding\n",
    )


def test_a_new_run_has_its_first_files_and_latest_points_at_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = make(tmp_path / "runs" / name)
        assert run.config_path.read_text() == "seed: 0\n"
        assert run.manifest_path.read_text() == "path\n"
        assert run.rejected_path.read_text() == "path,reason\n"
        assert (tmp_path / "runs" / "latest").resolve() == run.path.resolve()
    assert names_in(tmp_path / "runs") == ["latest", "one", "two"]


def test_an_empty_folder_is_free_and_the_check_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_folder.check_unused(tmp_path / "empty")
    run_folder.check_unused(tmp_path / "new" / "deep")
    assert names_in(tmp_path) == ["empty"]


def test_a_run_is_never_taken_twice(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    resume = re.escape(f"finetune fit --resume {run.path}")
    with pytest.raises(RunFolderError, match=f"exists and is not empty.*{resume}"):
        make(run.path)


def test_a_folder_that_holds_something_else_gets_no_advice_to_resume(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(RunFolderError, match=r"not empty\. Choose another --output") as caught:
        make(tmp_path)
    assert "--resume" not in str(caught.value)
    with pytest.raises(RunFolderError, match="exists"):
        make(tmp_path / "holiday.txt")


def test_a_path_through_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file may not be written"):
        run_folder.check_unused(tmp_path / "file" / "run")


def test_a_full_disk_leaves_no_run_folder(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", size="16k") as disk:
        with pytest.raises(StorageError, match="no space is left"):
            run_folder.create(
                disk / "run",
                config="",
                manifest="x" * 100_000,
                rejected="",
                audit_json="",
                audit_csv="",
            )
        assert names_in(disk) == []


def test_an_existing_run_is_found_through_latest(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    assert run_folder.open_existing(tmp_path / "latest").path == run.path.resolve()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("latest", "points at no run yet. Start one: finetune fit FOLDER"),
        ("missing", r"missing is no run folder \(it lacks config.yaml or manifest.csv\)"),
        (".", "is no run folder"),
    ],
)
def test_what_is_no_run_says_so(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        run_folder.open_existing(tmp_path / path)


@pytest.mark.parametrize("lost", ["config", "manifest"])
def test_half_a_run_is_no_run(tmp_path: Path, lost: str) -> None:
    run = make(tmp_path / "run")
    getattr(run, lost).unlink()
    with pytest.raises(RunFolderError, match="no run folder"):
        run_folder.open_existing(run.path)


@pytest.mark.parametrize(
    ("backbone", "data", "tail"),
    [
        ("resnet50.a1_in1k", "photos", "-resnet50.a1_in1k-photos"),
        ("hf-hub:timm/resnet18", "photos/flowers.csv", "-hf-hub_timm_resnet18-flowers"),
        ("vgg16", "/", "-vgg16"),
    ],
)
def test_a_name_holds_date_backbone_and_data(backbone: str, data: str, tail: str) -> None:
    name = run_folder.build_default_name(backbone, Path(data))
    assert re.fullmatch(rf"20\d{{6}}-\d{{6}}{re.escape(tail)}", name)


def test_the_name_of_the_working_folder_is_used_for_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path / "holiday")
    assert run_folder.build_default_name("vgg16", Path()).endswith("-vgg16-holiday")


def test_a_run_is_trained_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run")
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.3)
    with (
        run_folder.lock_run(run),
        pytest.raises(RunFolderError, match=rf"run is being trained by process {os.getpid()} on"),
        run_folder.lock_run(run),
    ):
        raise AssertionError
    with run_folder.lock_run(run):
        assert names_in(run.path)


def test_a_run_whose_process_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    held = run_folder.lock_run(run)
    held.__enter__()
    ending = threading.Timer(0.3, held.__exit__, args=(None, None, None))
    ending.start()
    start = time.monotonic()
    with run_folder.lock_run(run):
        assert time.monotonic() - start > 0.2
    ending.join()
