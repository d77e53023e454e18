"""Run folder: creation, lookup, naming and lock."""

import os
import re
import shlex
import threading
import time
from pathlib import Path

import pytest

from finetune.errors import RunFolderError, StorageError
from finetune.system import run_folder
from tests.support.helpers import list_names, mount_tiny_disk


def create_run(path: Path) -> run_folder.RunFolder:
    return run_folder.create(
        path,
        config="seed: 0\n",
        manifest="path\n",
        rejected="path,reason\n",
        audit_json="{}\n",
        audit_csv="finding\n",
    )


def test_create_writes_first_files_and_points_latest_at_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = create_run(tmp_path / "runs" / name)
        assert run.config_path.read_text() == "seed: 0\n"
        assert run.manifest_path.read_text() == "path\n"
        assert run.rejected_path.read_text() == "path,reason\n"
        assert (tmp_path / "runs" / "latest").resolve() == run.path.resolve()
    assert list_names(tmp_path / "runs") == ["latest", "one", "two"]


def test_check_unused_empty_or_missing_folder_passes_and_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_folder.check_unused(tmp_path / "empty")
    run_folder.check_unused(tmp_path / "new" / "deep")
    assert list_names(tmp_path) == ["empty"]


def test_create_existing_run_raises_run_folder_error_with_resume_command(tmp_path: Path) -> None:
    run = create_run(tmp_path / "my run")
    resume = re.escape(f"finetune fit --resume '{run.path}'")
    with pytest.raises(RunFolderError, match=f"not empty.*{resume}"):
        create_run(run.path)


def test_resume_command_of_a_fold_is_that_of_its_cross_validation(tmp_path: Path) -> None:
    whole = create_run(tmp_path / "it's")
    whole.folds_csv_path.touch()
    fold = create_run(whole.path / "folds" / "1")
    expected = ["finetune", "fit", "--resume", str(whole.path)]
    assert shlex.split(fold.resume_command) == expected


def test_create_in_folder_of_other_files_raises_without_resume_command(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(RunFolderError, match=r"not empty\..*--output") as caught:
        create_run(tmp_path)
    assert "--resume" not in str(caught.value)
    with pytest.raises(RunFolderError, match="exists"):
        create_run(tmp_path / "holiday.txt")


def test_check_unused_parent_is_a_file_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is not writable.*--output"):
        run_folder.check_unused(tmp_path / "file" / "run")


def test_create_full_disk_raises_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="16k") as disk:
        with pytest.raises(StorageError, match="no space"):
            run_folder.create(
                disk / "run",
                config="",
                manifest="x" * 100_000,
                rejected="",
                audit_json="",
                audit_csv="",
            )
        assert list_names(disk) == []


def test_create_at_a_link_keeps_it_and_writes_its_target(tmp_path: Path) -> None:
    for parent, name in (("one", "mine"), ("two", "latest")):
        (tmp_path / parent).mkdir()
        link = tmp_path / parent / name
        link.symlink_to("disk/run")
        assert run_folder.is_run(create_run(link).path)
        assert link.readlink() == Path("disk/run")
        assert run_folder.is_run(tmp_path / parent / "disk" / "run")
        assert run_folder.is_run(tmp_path / parent / "latest")
    assert list_names(tmp_path / "two") == ["disk", "latest"]


def test_open_existing_follows_latest_link(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert run_folder.open_existing(tmp_path / "latest").path == run.path.resolve()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("latest", "latest .*finetune fit FOLDER"),
        ("missing", r"missing does not exist\. Pass a folder created by finetune fit"),
        (".", "not a run folder"),
    ],
)
def test_open_existing_no_run_raises_run_folder_error(
    tmp_path: Path, path: str, message: str
) -> None:
    with pytest.raises(RunFolderError, match=message):
        run_folder.open_existing(tmp_path / path)


@pytest.mark.parametrize("missing", ["config_path", "manifest_path"])
def test_open_existing_incomplete_run_raises_run_folder_error(tmp_path: Path, missing: str) -> None:
    run = create_run(tmp_path / "run")
    getattr(run, missing).unlink()
    with pytest.raises(RunFolderError, match=r"config\.yaml or manifest\.csv"):
        run_folder.open_existing(run.path)


@pytest.mark.parametrize(
    ("backbone", "data", "suffix"),
    [
        ("resnet50.a1_in1k", "photos", "-resnet50.a1_in1k-photos"),
        ("hf-hub:timm/resnet18", "photos/flowers.csv", "-hf-hub_timm_resnet18-flowers"),
        ("vgg16", "/", "-vgg16"),
    ],
)
def test_build_default_name_contains_date_backbone_and_data(
    backbone: str, data: str, suffix: str
) -> None:
    name = run_folder.build_default_name(backbone, Path(data))
    assert re.fullmatch(rf"20\d{{6}}-\d{{6}}{re.escape(suffix)}", name)


def test_build_default_name_taken_in_the_same_second_gets_a_number(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        name = run_folder.build_default_name("vgg16", Path("photos"), parent=tmp_path)
        (tmp_path / name).mkdir()
        names.add(name)
    assert len(names) == 3


def test_build_default_name_for_dot_uses_name_of_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path / "holiday")
    assert run_folder.build_default_name("vgg16", Path()).endswith("-vgg16-holiday")


def test_lock_run_held_by_other_raises_run_folder_error_with_process_id(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    with (
        run_folder.lock_run(run),
        pytest.raises(RunFolderError, match=rf"process {os.getpid()} on"),
        run_folder.lock_run(run, timeout_seconds=0.3),
    ):
        raise AssertionError
    with run_folder.lock_run(run):
        assert list_names(run.path)


def test_lock_run_released_during_wait_is_acquired(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    holder = run_folder.lock_run(run)
    holder.__enter__()
    release = threading.Timer(0.3, holder.__exit__, args=(None, None, None))
    release.start()
    start = time.monotonic()
    with run_folder.lock_run(run):
        assert time.monotonic() - start > 0.2
    release.join()
