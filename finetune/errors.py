"""Exceptions, as one tree; each class has an exit code of the command line.

FinetuneError            1
├── ConfigError          2   an option, a config key or a value is invalid or cannot apply
├── DataError            3   images, labels or splits are unusable
├── ModelError           4   the backbone is unknown or its weights do not fit
├── RunFolderError       5   a run folder or bundle is missing, in use or damaged
├── StorageError         6   the disk is full, read-only or unreachable
├── TrainingError        7   training diverged or the ranks disagree
│   └── OutOfMemoryError 9   a step needs more memory than the device has
├── TrackingError        8   an experiment tracker refuses or is unreachable
└── HubError            11   the hub of models refuses, or there is no token or no network

A message states what was found, where, and what to do about it; it is shown without a traceback.
"""

from typing import ClassVar

CHECK_FAILED_EXIT_CODE = 10
"""Exit code of ``fit --check`` if something hinders the run; its result is printed as usual."""

INTERRUPTED_EXIT_CODE = 130
"""Exit code after Ctrl-C (SIGINT)."""

PREEMPTED_EXIT_CODE = 85
"""Exit code after SIGTERM, SIGUSR1 or SIGHUP: the run is saved; the same command resumes it."""


class FinetuneError(Exception):
    """Base class of errors that the user can fix; the message contains the remedy.

    Attributes:
        is_from_peer: Whether another process of the run has reported the error already.
        is_published: Whether the error was published to the other processes by the rendezvous; an
            error raised after it may be known to this process alone.
    """

    exit_code: ClassVar[int] = 1
    is_from_peer: bool = False
    is_published: bool = False


class ConfigError(FinetuneError, ValueError):
    """Invalid or inapplicable option, config key or value."""

    exit_code = 2


class DataError(FinetuneError, ValueError):
    """Images, labels or splits that cannot be used for training or evaluation."""

    exit_code = 3


class ModelError(FinetuneError, ValueError):
    """Unknown backbone, or weights that do not fit it."""

    exit_code = 4


class RunFolderError(FinetuneError, OSError):
    """Missing, already used or damaged run folder or bundle."""

    exit_code = 5


class StorageError(FinetuneError, OSError):
    """Full, read-only or unreachable disk.

    Attributes:
        reason: What is wrong with the disk, as a clause; empty if only the message says so.
    """

    exit_code = 6
    reason: str = ""


class TrainingError(FinetuneError, RuntimeError):
    """Diverged training, or ranks that disagree."""

    exit_code = 7


class OutOfMemoryError(TrainingError, MemoryError):
    """Training step that needs more memory than the device has."""

    exit_code = 9


class TrackingError(FinetuneError, ConnectionError):
    """Experiment tracker that refuses or is unreachable."""

    exit_code = 8


class HubError(FinetuneError, ConnectionError):
    """Hub of models that refuses or is unreachable, or to which there is no access."""

    exit_code = 11
