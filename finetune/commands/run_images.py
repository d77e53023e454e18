"""Images of a run, and the images that a folder or CSV holds now in relation to them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from finetune.commands.image_matching import Match, match_images
from finetune.commands.prepare_data import build_table_options, resolve_data_path
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.data.manifest import Manifest
from finetune.data.scan import Scan, scan
from finetune.errors import DataError, FinetuneError
from finetune.system import run_folder
from finetune.system.given_paths import is_file, is_folder
from finetune.types import Reporter, Split

_MAX_SUBFOLDERS = 100
"""Number of subfolders of a named folder in which the images of a run are searched."""

_MAX_PROBES = 100
"""Number of images of a run that are searched in a folder to recognise it."""


@dataclass(frozen=True, slots=True)
class RunImages:
    """Images of a run when it was trained.

    Attributes:
        path: Data path of the run's config.
        manifest: Images, with their labels and splits.
        rejected: Paths of the files that the run left out.
        moves_leaks: Whether the run trained on held-out images that had duplicates in training.
        splits: How splits are found in the data, see ``scan``.
        tables: Columns of tables.
    """

    path: Path
    manifest: Manifest
    rejected: frozenset[str] = frozenset()
    moves_leaks: bool = False
    splits: SplitSetting = "auto"
    tables: TableOptions = DEFAULT_TABLE_OPTIONS

    @property
    def is_csv(self) -> bool:
        """Whether the labels were read from a CSV."""
        return self.path.suffix.lower() == ".csv"


@dataclass(frozen=True, slots=True)
class LocatedImages:
    """Images that a folder or CSV holds, with their relation to the images of a run.

    Attributes:
        path: Folder or CSV that was read.
        scan: Its images, without those that a CSV lists and that do not exist.
        matches: Relation of each image to the run, in the same order.
        is_in_place: Whether ``path`` is the data path of the run.
        complete_scan: Its images, with those that do not exist.
        splits: How splits are found in it, see ``scan``.
    """

    path: Path
    scan: Scan
    matches: Sequence[Match]
    is_in_place: bool
    complete_scan: Scan
    splits: SplitSetting = "auto"

    def holds_run(self, run: RunImages) -> bool:
        """Return whether these are the images of a run, and not a few of them or others."""
        found = [match.original for match in self.matches if match.original is not None]
        has_held_out = any(sample.split is not Split.TRAIN for sample in found)
        is_most = 2 * len(found) >= len(run.manifest.samples)
        return self.is_in_place or (is_most and has_held_out)


def read_run_images(model: Path) -> RunImages | None:
    """Return the images of a run folder; None for a bundle or checkpoint outside of one.

    Raises:
        DataError: The manifest is damaged.
        RunFolderError: The run folder is damaged.
    """
    if not (model / "manifest.csv").is_file():
        return None
    run = run_folder.open_existing(model)
    config = read_stored_config(run)
    rejected: frozenset[str] = frozenset()
    if run.rejected_path.is_file():
        with run.rejected_path.open(encoding="utf-8", newline="") as stream:
            rejected = frozenset(row["path"] for row in csv.DictReader(stream))
    manifest = read_stored_manifest(run, config)
    return RunImages(
        resolve_data_path(config),
        manifest,
        rejected,
        config.data.leakage == "move",
        config.data.split_setting,
        tables=build_table_options(config).adapt_to_other_data(
            manifest.classes if manifest.is_multi_label else ()
        ),
    )


def read_column_options(models: Sequence[Path]) -> TableOptions:
    """Return the columns of tables by the config of the first run among models, else the usual.

    Other data may have other columns; those of the run are taken where they exist. The cache is
    the usual one, as that of the run may lie on another machine.

    Raises:
        ConfigError: ``config.yaml`` of the run is damaged.
        RunFolderError: The run folder is damaged.
    """
    run = next((path for path in models if (path / "manifest.csv").is_file()), None)
    tables = DEFAULT_TABLE_OPTIONS
    if run is not None:
        tables = build_table_options(read_stored_config(run_folder.open_existing(run)))
    return replace(tables.adapt_to_other_data(), cache=DEFAULT_TABLE_OPTIONS.cache)


def read_run_of_part(part: Path) -> RunImages | None:
    """Return the images of the run that a bundle or checkpoint lies in; None if there is none."""
    folder = part.parent.parent if part.parent.name == "checkpoints" else part.parent
    try:
        return read_run_images(folder)
    except FinetuneError:  # the bundle or checkpoint itself is intact
        return None


def locate_images(data: Path | None, run: RunImages, *, reporter: Reporter) -> LocatedImages:
    """Read the images of a folder or CSV, as they are now, and match them with those of a run.

    Args:
        data: Folder or CSV; None is the data path of the run.
        run: Images of the run.
        reporter: Receives progress, notes and warnings.

    Raises:
        DataError: The folder or CSV cannot be read as labelled images.
    """
    path = run.path if data is None else _find_data_path(data, run, reporter)
    is_in_place = path.resolve() == run.path.resolve()
    splits = run.splits if is_in_place else _adapt_splits(path, run.splits)
    complete = _scan_now(path, run, splits, reporter)
    scanned = complete
    if is_file(path):  # a CSV may list files that do not exist
        exists = ((complete.root / sample.path).is_file() for sample in complete.samples)
        scanned = replace(complete, samples=tuple(compress(complete.samples, exists)))
    matches = match_images(scanned.root, scanned.samples, run.manifest, reporter=reporter)
    return LocatedImages(path, scanned, matches, is_in_place, complete, splits)


def _find_data_path(data: Path, run: RunImages, reporter: Reporter) -> Path:
    """Return what holds the data of a run: a named folder, one in it, or the run's CSV in it."""
    if not is_folder(data) or data.resolve() == run.path.resolve():
        return data
    if _holds_images(data, run):
        folder = data
    else:
        folders = sorted(entry for entry in data.iterdir() if entry.is_dir())[:_MAX_SUBFOLDERS]
        folder = next((entry for entry in folders if _holds_images(entry, run)), data)
    labels = folder / run.path.name
    path = labels if run.is_csv and labels.is_file() else folder
    if path != data:
        reporter.note(f"The run's data are in {path}.")
    return path


def _holds_images(folder: Path, run: RunImages) -> bool:
    """Return whether a folder holds most images of a run under the same relative paths."""
    samples = run.manifest.samples
    probes = samples[:: max(1, len(samples) // _MAX_PROBES)]
    relative = [sample.path for sample in probes if not Path(sample.path).is_absolute()]
    return 2 * sum((folder / path).is_file() for path in relative) > len(probes)


def _adapt_splits(path: Path, splits: SplitSetting) -> SplitSetting:
    """Return how splits are found in other data: by the run's names only if it has all of them."""
    if isinstance(splits, str) or not path.is_dir():
        return splits
    present = {entry.name.casefold() for entry in path.iterdir()}
    return splits if {name.partition("/")[0].casefold() for name in splits} <= present else "auto"


def _scan_now(path: Path, run: RunImages, splits: SplitSetting, reporter: Reporter) -> Scan:
    """Return the images of a folder or CSV, or those of the run where a folder gives no labels.

    Raises:
        DataError: The folder or CSV cannot be read as labelled images.
    """
    reason = f"the run read them from {run.path.name}" if run.is_csv else ""
    if not (run.is_csv and is_folder(path) and _holds_images(path, run)):
        try:
            scanned = scan(
                path, splits=splits, allow_empty=True, tables=run.tables, reporter=reporter
            )
        except DataError as error:
            if not (is_folder(path) and _holds_images(path, run)):
                raise
            reason = str(error).rstrip(".")
        else:
            for line in scanned.notes:
                reporter.note(line)
            return scanned
    reporter.warn(
        f"Labels and splits are those of the run, and not read from {path} as it is now: {reason}."
    )
    root = path.resolve()
    samples = tuple(s for s in run.manifest.samples if (root / s.path).is_file())
    return Scan(root, samples)
