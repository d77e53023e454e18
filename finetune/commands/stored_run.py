"""Config and manifest stored in a run folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.audit.fingerprint import compute_digest
from finetune.commands.prepare_data import build_table_options, resolve_data_path
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from finetune.config.sections.augment import PRESET_CROP_SCALES
from finetune.data.images.validate import map_in_threads
from finetune.data.layouts.csv_files.csv_images import find_csv_root
from finetune.data.layouts.parquet.parquet_dataset import find_parquet_root
from finetune.data.layouts.parquet.parquet_files import is_parquet_path
from finetune.data.layouts.unpacked_images import find_unpacked_table
from finetune.data.manifest import Manifest, read_manifest
from finetune.errors import DataError, RunFolderError
from finetune.lookup import find_module_inside
from finetune.system.given_paths import is_folder
from finetune.system.run_folder import RunFolder
from finetune.system.run_paths import find_whole_folder
from finetune.types import Sample
from finetune.units import format_count


def read_stored_config(run: RunFolder) -> Config:
    """Return the resolved config of a run.

    Raises:
        ConfigError: ``config.yaml`` is damaged.
    """
    return build_config(read_stored_tree(run), source_name=str(run.config_path))


def read_stored_tree(run: RunFolder) -> dict[str, Any]:
    """Return the config of a run as nested values, with those that an older release implied.

    Releases without these keys used the flips and crops of the preset, adjusted priors in full,
    chose the best epoch by the monitored metric, had no momentum of SGD but Nesterov's, began with
    a head of zeros, fitted no heads to earlier stages, and measured no training images.

    Raises:
        ConfigError: ``config.yaml`` is damaged.
    """
    tree = read_config_file(run.config_path)
    implied: dict[str, dict[str, Any]] = {
        "imbalance": {"post_hoc_strength": 1.0},
        "checkpoint": {"monitor": _get_section(tree, "trainer").get("monitor", "auto")},
        "model": {"head_init": "zero"},
        "probe": {"stages": "off"},
        "trainer": {"train_eval": "off"},
        "optim": {"nesterov": "on" if _has_sgd_momentum(tree) else "off"},
    }
    scale = PRESET_CROP_SCALES.get(_get_section(tree, "augment").get("name", ""))
    if scale is not None:
        implied["augment"] = {
            "hflip": "on",
            "vflip": "off",
            "rot90": "off",
            "min_crop_scale": scale,
        }
    sections = {
        name: {**values, **_get_section(tree, name)}
        for name, values in implied.items()
        if isinstance(tree.get(name, {}), Mapping)  # else an error for validation to report
    }
    return {**tree, **sections}


def check_stored_code(folder: Path, tree: Mapping[str, Any]) -> None:
    """Check that a stored config names no code that lies in the folder of the config.

    The folder of a trial is that of its study, and that of a fold the one of all folds.

    A run continues with the code that its config names (``loss.name=package.module:function``),
    as it began. That of somebody else may bring code along; nothing is imported here.

    Args:
        folder: Run folder, or that of a study.
        tree: Its config as nested values.

    Raises:
        RunFolderError: It names such code.
    """
    folder = find_whole_folder(folder)
    for key, value in _iter_texts(tree):
        location = find_module_inside(value.partition(":")[0], folder) if ":" in value else None
        if location is not None:
            raise RunFolderError(
                f"{folder} names code, {key}={value}, that is in the same folder ({location}). "
                f"Such code is not executed, as the folder may be of somebody else. If it is "
                f"yours, move the module out of it, and run from its new folder or put that on "
                f"PYTHONPATH."
            )


def _iter_texts(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of nested values with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _iter_texts(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value


def _has_sgd_momentum(tree: Mapping[str, Any]) -> bool:
    optim = _get_section(tree, "optim")
    return optim.get("name") == "sgd" and optim.get("momentum", 0.9) != 0


def _get_section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config; empty if it is missing or no section."""
    section = tree.get(name)
    return section if isinstance(section, Mapping) else {}


def read_stored_manifest(run: RunFolder, config: Config) -> Manifest:
    """Return the manifest of a run, with the data path of its config as root.

    For images inside of a CSV or Parquet files that is the folder of the unpacked images, which are
    unpacked if they are not there.

    Raises:
        DataError: ``manifest.csv`` is missing or damaged, or a table is.
    """
    path = resolve_data_path(config)
    tables = build_table_options(config)
    root = path
    if is_parquet_path(path) or is_folder(path):
        root = find_parquet_root(path, tables) or path
    elif path.suffix.lower() == ".csv":
        root = find_csv_root(path, tables)
    return read_manifest(run.manifest_path, root=root)


def check_files_exist(manifest: Manifest, samples: Sequence[Sample]) -> None:
    """Check that the image files of a run exist, and those of a table are the ones of the run.

    Images inside of a table have no names but their rows: after a row was added or removed, the
    same name is another image.

    Raises:
        DataError: Some are missing or others; the message has their number and the first path.
    """
    check_table_rows(manifest, samples)
    missing = [file for file in manifest.resolve_paths(samples) if not file.is_file()]
    if missing:
        images = format_count(len(samples), "image")
        raise DataError(
            f"{len(missing):,} of {images} of the run {'is' if len(missing) == 1 else 'are'} "
            f"missing, first {missing[0]}. "
            f"Restore them, or give the folder in which they are now."
        )


def check_table_rows(manifest: Manifest, samples: Sequence[Sample]) -> None:
    """Check that images of a run that were unpacked from a table are still in the same rows.

    Raises:
        DataError: Some are not; the message has their number and the first path.
    """
    table = find_unpacked_table(manifest.root)
    if table is None:
        return
    known = [sample for sample in samples if sample.digest and not Path(sample.path).is_absolute()]
    digests = map_in_threads(compute_digest, manifest.resolve_paths(known))
    pairs = zip(known, digests, strict=True)
    changed = [sample.path for sample, digest in pairs if digest != sample.digest]
    if changed:
        images = format_count(len(known), "image")
        raise DataError(
            f"{table} has changed since the run began: {len(changed):,} of {images} "
            f"{'is' if len(changed) == 1 else 'are'} not in the same row, first {changed[0]}. "
            f"Restore the file as it was, or start a new run."
        )
