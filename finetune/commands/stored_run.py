"""What a run folder says about its own run."""

from collections.abc import Sequence

from finetune.commands.prepare_data import resolve_data_path
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, read_manifest
from finetune.errors import DataError
from finetune.system.run_folder import RunFolder
from finetune.types import Sample


def read_stored_config(run: RunFolder) -> Config:
    """Return the resolved config of a run.

    Raises:
        ConfigError: The file is damaged.
    """
    return build_config(read_config_file(run.config_path), source_name=str(run.config_path))


def read_stored_manifest(run: RunFolder, config: Config) -> Manifest:
    """Return the images of a run, below where its config says that they lie now.

    Raises:
        DataError: The manifest is damaged.
    """
    path = resolve_data_path(config)
    is_csv = path.suffix.lower() == ".csv" and not path.is_dir()
    return read_manifest(run.manifest_path, root=path.parent if is_csv else path)


def check_files_exist(manifest: Manifest, samples: Sequence[Sample]) -> None:
    """Raise if images of a run are gone.

    Raises:
        DataError: Says how many, names the first and what to do.
    """
    gone = [file for file in manifest.resolve_paths(samples) if not file.is_file()]
    if gone:
        raise DataError(
            f"{len(gone)} of {len(samples)} images of the run are gone, first {gone[0]}. Restore "
            f"them, or name the folder where they lie now."
        )
