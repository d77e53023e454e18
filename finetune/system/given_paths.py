"""Checks that paths which a user gives exist, without reading them or importing torch."""

import errno
from pathlib import Path

from finetune.errors import ConfigError, ModelError
from finetune.lookup import suggest_path

_NO_FILES = ("hub", "random")


def exists(path: Path) -> bool:
    """Return whether a path exists; one that cannot exist, as its name is too long, does not.

    ``Path.exists``, ``is_file`` and ``is_dir`` raise the error of the system for such a path.
    """
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.EACCES:  # it may exist: the message says why it is not read
            raise
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file, see ``exists``."""
    return exists(path) and path.is_file()


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, see ``exists``."""
    return exists(path) and path.is_dir()


def check_weights_path(weights: str) -> None:
    """Check that the file or folder of ``--weights`` exists, unless it names none.

    Raises:
        ModelError: It does not.
    """
    path = Path(weights).expanduser()
    if weights not in _NO_FILES and not exists(path):
        raise ModelError(
            f"--weights {weights} does not exist.{suggest_path(path)} Pass a file, a folder, 'hub' "
            f"or 'random'."
        )


def check_pipeline_path(path: Path) -> None:
    """Check that a saved augmentation exists.

    Raises:
        ConfigError: It does not.
    """
    if not is_file(path):
        raise ConfigError(
            f"augment.name: {path} does not exist.{suggest_path(path)} Check the path."
        )
