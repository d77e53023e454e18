"""Run folder: its atomic creation and its lock."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError, StorageError
from finetune.lookup import suggest_path
from finetune.system import output_streams
from finetune.system.files import (
    remove_stale_temp_folders,
    replace_symlink,
    translate_disk_errors,
    write_folder_atomically,
    write_text,
)
from finetune.system.given_paths import exists, is_file
from finetune.system.run_paths import RunFolder

__all__ = [
    "RunFolder",
    "build_default_name",
    "check_unused",
    "create",
    "is_run",
    "lock_run",
    "open_existing",
    "update_latest_link",
]

LOCK_TIMEOUT_SECONDS = 15.0
"""Longer than the DataLoader workers of a killed run take to exit."""


def build_default_name(backbone: str, data: Path, *, parent: Path = Path("runs")) -> str:
    """Return ``<date>-<backbone>-<data folder>``; with a number if ``parent`` has that name."""
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[*?]", "", data.resolve().stem).strip("-_.")  # of a pattern for files
    parts = (backbone.replace("/", "_").replace(":", "_"), name)
    name = "-".join((date, *(part for part in parts if part)))
    candidates = (name, *(f"{name}-{number}" for number in range(2, 100)))
    return next((n for n in candidates if not (parent / n).exists()), name)


def check_unused(path: Path) -> None:
    """Check that a run folder can be created at ``path``.

    Raises:
        RunFolderError: The folder exists and is not empty.
        StorageError: The folder cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        hint = (
            f"Resume it with {RunFolder(path).resume_command}, or choose another --output."
            if (path / "config.yaml").is_file()
            else "Choose another --output."
        )
        raise RunFolderError(f"The run folder {path} exists and is not empty. {hint}")
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(
            f"Cannot create the run folder {path}: {parent} is not writable. Choose another "
            f"folder with --output."
        )


def create(
    path: Path,
    *,
    config: str,
    manifest: str,
    rejected: str,
    audit_json: str,
    audit_csv: str,
    folds_csv: str | None = None,
) -> RunFolder:
    """Create a run folder with its first files and point ``latest`` at it.

    Raises:
        RunFolderError: The folder exists and is not empty.
        StorageError: The disk is full or not writable.
    """
    check_unused(path)
    remove_stale_temp_folders(path)
    with write_folder_atomically(path) as temporary:
        draft = RunFolder(temporary)
        write_text(draft.manifest_path, manifest)
        write_text(draft.rejected_path, rejected)
        write_text(draft.audit_json_path, audit_json)
        write_text(draft.audit_csv_path, audit_csv)
        if folds_csv is not None:
            write_text(draft.folds_csv_path, folds_csv)
        write_text(draft.config_path, config)
    run = RunFolder(path)
    update_latest_link(run)
    return run


def update_latest_link(run: RunFolder) -> None:
    """Point the sibling link ``latest`` at the run, unless another kind of file has that name.

    The parts of a cross-validation have none.
    """
    link = run.path.parent / "latest"
    if run.cross_validation_run is not run or link == run.path:
        return
    if not link.exists() or (link / "config.yaml").is_file():
        replace_symlink(link, run.path.name)


@contextmanager
def lock_run(
    run: RunFolder,
    *,
    extra_wait_seconds: float = 0.0,
    timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> Iterator[None]:
    """Hold the run's lock, which keeps other processes from training it.

    After a kill the DataLoader workers hold the lock for a few more seconds. On file systems
    without locks nothing is locked. From now on, a log in the run folder takes the place of a
    console that is closed.

    Args:
        run: Run folder to lock.
        extra_wait_seconds: Additional seconds to wait for a holder that may be about to exit.
        timeout_seconds: Seconds to wait for the lock in any case.

    Raises:
        RunFolderError: Another process is training the run.
        StorageError: The folder cannot be written.
    """
    file = run.path / ".lock"
    with translate_disk_errors(file):
        lock = file.open("a+")
    with lock:
        deadline = time.monotonic() + timeout_seconds + extra_wait_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise RunFolderError(
                        f"The run in {run.path} is being trained by "
                        f"{lock.read() or 'another process'}; two would overwrite each other's "
                        f"checkpoints. Wait for it, or stop it. Start the tasks of one job with "
                        f"srun or torchrun, so that they form one process group."
                    ) from error
                time.sleep(0.1)
            except OSError:
                break
        lock.truncate(0)
        lock.write(_describe_process())
        lock.flush()
        output_streams.set_log(run.console_log_path)
        yield


def _describe_process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f" (job {job})" if job else "")


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder."""
    run = RunFolder(path)
    return is_file(run.config_path) and is_file(run.manifest_path)


def open_existing(path: Path) -> RunFolder:
    """Return the run folder at a path.

    Raises:
        RunFolderError: The path is not a run folder.
    """
    run = RunFolder(path.resolve())
    if not is_run(path):
        if path.name == "latest" and not exists(path):
            raise RunFolderError(
                f"{path} does not exist: no run was started here. Start one with "
                f"finetune fit FOLDER."
            )
        if not exists(path):
            raise RunFolderError(
                f"{path} does not exist.{suggest_path(path)} Pass a folder created by finetune "
                f"fit, for example runs/latest."
            )
        raise RunFolderError(
            f"{path} is not a run folder (config.yaml or manifest.csv is missing). Pass a folder "
            f"created by finetune fit, for example runs/latest."
        )
    return run
