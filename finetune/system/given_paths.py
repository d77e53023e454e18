"""Checks that files which settings name exist, without reading them or importing torch."""

from pathlib import Path

from finetune.errors import ConfigError, ModelError
from finetune.lookup import suggest_path

_NO_FILES = ("hub", "random")


def check_weights_path(weights: str) -> None:
    """Check that the file or folder of ``--weights`` exists, unless it names none.

    Raises:
        ModelError: It does not.
    """
    path = Path(weights).expanduser()
    if weights not in _NO_FILES and not path.exists():
        raise ModelError(
            f"--weights {weights} does not exist.{suggest_path(path)} Pass a file, a folder, 'hub' "
            f"or 'random'."
        )


def check_pipeline_path(path: Path) -> None:
    """Check that a saved augmentation exists.

    Raises:
        ConfigError: It does not.
    """
    if not path.is_file():
        raise ConfigError(
            f"augment.name: {path} does not exist.{suggest_path(path)} Check the path."
        )
