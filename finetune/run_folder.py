"""The folder of a run: what lies where, made whole, never taken twice."""

import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError, StorageError
from finetune.storage import explain_disk_error, replace_link, write_text


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of everything in a run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Which image is in which split."""
        return self.path / "manifest.csv"

    @property
    def rejected(self) -> Path:
        """Files that were left out, with reasons."""
        return self.path / "rejected.csv"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def bundle(self) -> Path:
        """The finished model."""
        return self.path / "bundle"

    @property
    def done(self) -> Path:
        """Says how many epochs the finished run has; absent while it is not finished."""
        return self.path / ".done"

    @property
    def wandb_id(self) -> Path:
        """The id of the W&B run."""
        return self.path / "wandb_id.txt"


def default_name(backbone: str, data: Path) -> str:
    """Return ``<date>-<backbone>-<data folder>``."""
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    parts = (backbone.replace("/", "_").replace(":", "_"), data.resolve().stem)
    return "-".join((date, *(part for part in parts if part)))


def check_free(path: Path) -> None:
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


def create(path: Path, *, config: str, manifest: str, rejected: str) -> RunFolder:
    """Make a run folder with its first files and point ``latest`` at it.

    Raises:
        RunFolderError: It holds something already.
        StorageError: The disk is full or may not be written.
    """
    check_free(path)
    run = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_disk_error(error, path) or error from error
    try:
        write_text(run.manifest, manifest)
        write_text(run.rejected, rejected)
        # last: a folder with a config is a run that can be resumed
        write_text(run.config, config)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    point_latest_at(run)
    return run


def point_latest_at(run: RunFolder) -> None:
    """Make ``latest`` beside the run point at it, unless something else bears that name."""
    link = run.path.parent / "latest"
    if not link.exists() or (link / "config.yaml").is_file():
        replace_link(link, run.path.name)


def existing(path: Path) -> RunFolder:
    """Return the run at a path.

    Raises:
        RunFolderError: There is no run.
    """
    run = RunFolder(path.resolve())
    if not run.config.is_file() or not run.manifest.is_file():
        if path.name == "latest" and not path.exists():
            raise RunFolderError(f"{path} points at no run yet. Start one: finetune fit FOLDER.")
        raise RunFolderError(
            f"{path} is no run folder (it lacks config.yaml or manifest.csv). Name a folder that "
            f"`finetune fit` made, as runs/latest."
        )
    return run


def wait_for(path: Path, *, launch: str, timeout_seconds: float) -> RunFolder:
    """Return the run that rank 0 of the same launch makes, once it is there.

    Args:
        path: The run folder.
        launch: Names this start of the job, so that an older run is not taken for it.
        timeout_seconds: When to give up.

    Raises:
        RunFolderError: Rank 0 did not make it in time.
    """
    marker = path / f".ready-{launch}"
    end = time.monotonic() + timeout_seconds
    while not marker.exists():
        if time.monotonic() > end:
            raise RunFolderError(
                f"Rank 0 did not prepare {path} in {timeout_seconds:.0f} s. See its messages."
            )
        time.sleep(0.2)
    return RunFolder(path)


def announce(run: RunFolder, *, launch: str) -> None:
    """Tell the other ranks of a launch that the folder is ready; markers of old ones go."""
    for stale in run.path.glob(".ready-*"):
        stale.unlink()
    write_text(run.path / f".ready-{launch}", "")
