"""Lock of a trial, which the operating system releases when the process that runs it ends."""

import fcntl
import os
import socket
import time
from io import TextIOWrapper
from pathlib import Path

from finetune.system.files import translate_disk_errors

_DYING_SECONDS = 20.0
"""Longer than the loader workers of a killed process take to exit, which share its lock."""


def lock_trial(study_dir: Path, number: int) -> TextIOWrapper | None:
    """Return the locked file of a trial; None if another process runs the trial.

    Args:
        study_dir: Folder of the study.
        number: Optuna's number of the trial, from 0.

    Raises:
        StorageError: The file cannot be written.
    """
    folder = study_dir / "trials"
    with translate_disk_errors(folder):
        folder.mkdir(exist_ok=True)
        lock = (folder / f".{number + 1:03}.lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not _is_dead(lock) or time.monotonic() > deadline:
                lock.close()
                return None
            time.sleep(0.1)
        except OSError:  # no locks on this file system: the process that wrote it may be known
            if not _is_dead(lock):
                lock.close()
                return None
            break
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()} {socket.gethostname()}")
    lock.flush()
    return lock


def _is_dead(lock: TextIOWrapper) -> bool:
    """Return whether the process that wrote a lock file was on this node and is gone."""
    lock.seek(0)
    pid, _, host = lock.read().partition(" ")
    if not pid:
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
