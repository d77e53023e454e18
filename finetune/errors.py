"""What can go wrong, as one tree. Each error has an exit code and says what to do.

FinetuneError            1
├── ConfigError          2   an option, a key or a value that cannot be
├── DataError            3   the images, labels or splits
├── ModelError           4   the backbone or its weights
├── RunFolderError       5   a run folder or bundle that is missing, taken or damaged
├── StorageError         6   the disk: full, read-only, unreachable
├── TrainingError        7   training diverged or the processes disagree
│   └── OutOfMemoryError 9   a step needs more memory than there is
└── TrackingError        8   Weights & Biases does not answer

A message says what was found, where, and what to do about it; it is shown without a traceback.
"""

from typing import ClassVar

INTERRUPTED_EXIT_CODE = 130
"""After Ctrl-C."""

PREEMPTED_EXIT_CODE = 85
"""After SIGTERM, SIGUSR1 or SIGHUP: the run is saved, and the same command goes on with it."""


class FinetuneError(Exception):
    """Anything that the user can mend; the message holds the remedy.

    Attributes:
        is_from_peer: Another process of the run has said it already.
        is_published: Raised after the processes have met, so that this one alone may know of it.
    """

    exit_code: ClassVar[int] = 1
    is_from_peer: bool = False
    is_published: bool = False


class ConfigError(FinetuneError, ValueError):
    """An option, a config key or a value that does not exist or cannot apply."""

    exit_code = 2


class DataError(FinetuneError, ValueError):
    """Images, labels or splits that cannot be trained or evaluated on."""

    exit_code = 3


class ModelError(FinetuneError, ValueError):
    """A backbone that does not exist, or weights that do not fit it."""

    exit_code = 4


class RunFolderError(FinetuneError, OSError):
    """A run folder or bundle that is missing, already taken, or damaged."""

    exit_code = 5


class StorageError(FinetuneError, OSError):
    """A disk that is full, read-only or unreachable."""

    exit_code = 6


class TrainingError(FinetuneError, RuntimeError):
    """Training that diverged, or processes that disagree."""

    exit_code = 7


class OutOfMemoryError(TrainingError, MemoryError):
    """A step that needs more memory than the device has."""

    exit_code = 9


class TrackingError(FinetuneError, ConnectionError):
    """A tracker that refuses or is not reached."""

    exit_code = 8
