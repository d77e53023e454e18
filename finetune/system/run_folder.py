"""The folder of a run: what lies where, made whole, never taken twice."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError, StorageError
from finetune.system.files import (
    remove_stale_temp_folders,
    replace_symlink,
    translate_disk_errors,
    write_folder_atomically,
    write_text,
)

_LOCK_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of everything in a run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Which image is in which split."""
        return self.path / "manifest.csv"

    @property
    def rejected_path(self) -> Path:
        """Files that were left out, with reasons."""
        return self.path / "rejected.csv"

    @property
    def audit_json_path(self) -> Path:
        """What was found in the images before the first epoch, as JSON."""
        return self.path / "audit.json"

    @property
    def audit_csv_path(self) -> Path:
        """The same with a row a finding."""
        return self.path / "audit.csv"

    @property
    def metrics_path(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def best_checkpoint_path(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint_path(self) -> Path:
        """The last checkpoint, of an epoch's end or its middle."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def bundle_dir(self) -> Path:
        """The finished model."""
        return self.path / "bundle"

    @property
    def done_marker_path(self) -> Path:
        """Says how many epochs the finished run has; absent while it is not finished."""
        return self.path / ".done"

    @property
    def wandb_id_path(self) -> Path:
        """The id of the W&B run."""
        return self.path / "wandb_id.txt"

    @property
    def wandb_epochs_path(self) -> Path:
        """How many epochs W&B is known to have, as told when it last was ended in good order."""
        return self.path / ".wandb_epochs"


def build_default_name(backbone: str, data: Path) -> str:
    """Return ``<date>-<backbone>-<data folder>``."""
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    parts = (backbone.replace("/", "_").replace(":", "_"), data.resolve().stem)
    return "-".join((date, *(part for part in parts if part)))


def check_unused(path: Path) -> None:
    """Raise unless a run folder could be made at ``path``, before any work is done.

    Raises:
        RunFolderError: It holds something already.
        StorageError: It may not be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        hint = (
            f"Go on with it: finetune fit --resume {path}. Or choose another --output."
            if (path / "config.yaml").is_file()
            else "Choose another --output."
        )
        raise RunFolderError(f"The run folder {path} exists and is not empty. {hint}")
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(
            f"Cannot make the run folder {path}: {parent} may not be written. Choose another "
            f"place with --output."
        )


def create(
    path: Path, *, config: str, manifest: str, rejected: str, audit_json: str, audit_csv: str
) -> RunFolder:
    """Make a run folder with its first files and point ``latest`` at it.

    Raises:
        RunFolderError: It holds something already.
        StorageError: The disk is full or may not be written.
    """
    check_unused(path)
    remove_stale_temp_folders(path)
    with write_folder_atomically(path) as temporary:
        draft = RunFolder(temporary)
        write_text(draft.manifest_path, manifest)
        write_text(draft.rejected_path, rejected)
        write_text(draft.audit_json_path, audit_json)
        write_text(draft.audit_csv_path, audit_csv)
        write_text(draft.config_path, config)
    run = RunFolder(path)
    update_latest_link(run)
    return run


def update_latest_link(run: RunFolder) -> None:
    """Make ``latest`` beside the run point at it, unless something else bears that name."""
    link = run.path.parent / "latest"
    if not link.exists() or (link / "config.yaml").is_file():
        replace_symlink(link, run.path.name)


@contextmanager
def lock_run(run: RunFolder, *, extra_wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep every other process from training the run meanwhile.

    After a kill the processes that read images hold the lock for some seconds more. Where the file
    system has no locks, nothing is kept.

    Args:
        run: Is trained.
        extra_wait_seconds: Seconds to wait longer for one that may be about to give up.

    Raises:
        RunFolderError: Another process trains it.
        StorageError: The folder may not be written.
    """
    file = run.path / ".lock"
    with translate_disk_errors(file):
        lock = file.open("a+")
    with lock:
        end = time.monotonic() + _LOCK_SECONDS + extra_wait_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    lock.seek(0)
                    raise RunFolderError(
                        f"The run in {run.path} is being trained by {lock.read() or 'another'}: "
                        f"two would overwrite each other's checkpoints. Wait for it, or stop it. "
                        f"Tasks of one job must know of each other: start them with srun or "
                        f"torchrun."
                    ) from error
                time.sleep(0.1)
            except OSError:
                break
        lock.truncate(0)
        lock.write(_describe_process())
        lock.flush()
        yield


def _describe_process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f" (job {job})" if job else "")


def is_run(path: Path) -> bool:
    """Tell whether a run lies at a path."""
    run = RunFolder(path)
    return run.config_path.is_file() and run.manifest_path.is_file()


def open_existing(path: Path) -> RunFolder:
    """Return the run at a path.

    Raises:
        RunFolderError: There is no run.
    """
    run = RunFolder(path.resolve())
    if not is_run(path):
        if path.name == "latest" and not path.exists():
            raise RunFolderError(f"{path} points at no run yet. Start one: finetune fit FOLDER.")
        raise RunFolderError(
            f"{path} is no run folder (it lacks config.yaml or manifest.csv). Name a folder that "
            f"`finetune fit` made, as runs/latest."
        )
    return run
