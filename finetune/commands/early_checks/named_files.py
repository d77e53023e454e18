"""Checks of the files and folders that a config names, before torch is imported."""

from pathlib import Path

from finetune.config.schema import Config
from finetune.config.sections.augment import AUGMENT_NAMES
from finetune.errors import ConfigError
from finetune.models.pretrained.timm_folder import read_timm_folder
from finetune.system import run_folder
from finetune.system.given_paths import check_pipeline_path, check_weights_path


def check_named_files(config: Config) -> None:
    """Check the run folder, the weights and the augmentation of a new run.

    Raises:
        ConfigError: A fold has no folder that it shares with the others, or the saved augmentation
            does not exist.
        ModelError: The weights do not exist, or are a folder without weights of the backbone.
        RunFolderError: The run folder exists, and is not to be resumed.
        StorageError: The run folder cannot be created.
    """
    check_shared_folder(config)
    if config.output is not None:
        path = Path(config.output).expanduser()
        if config.resume == "never" or not run_folder.is_run(path):
            run_folder.check_unused(path)
    check_weights_path(config.model.weights)
    weights = Path(config.model.weights).expanduser()
    if config.model.weights not in ("hub", "random") and weights.is_dir():
        read_timm_folder(weights, config.model.backbone)
    if config.augment.name not in ("auto", *AUGMENT_NAMES):
        check_pipeline_path(Path(config.augment.name).expanduser())


def check_shared_folder(config: Config) -> None:
    """Check that a job of one fold names the folder of all folds.

    Raises:
        ConfigError: It does not.
    """
    fold = config.cross_validation.fold
    if fold is not None and config.output is None:
        raise ConfigError(
            f"cross_validation.fold={fold} (--fold) needs the folder that the jobs of all folds "
            f"share. Add --output runs/NAME and --resume auto."
        )
