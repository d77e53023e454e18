"""Rejector of a model that a command has loaded, and whether its options allow one."""

from collections.abc import Sequence
from pathlib import Path

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.rejection.rejection_statistics import (
    has_rejection_statistics,
    load_rejection_statistics,
)
from finetune.commands.rejection.record_statistics import measure_run_statistics
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.evaluation.rejection.reject_options import RejectOptions
from finetune.inference.rejection.feature_pass import check_features
from finetune.inference.rejection.rejector import Rejector
from finetune.system import run_folder
from finetune.types import Reporter


def create_rejector(
    bundle: ModelBundle, paths: Sequence[Path], options: RejectOptions, reporter: Reporter
) -> Rejector:
    """Return the rejector of a model by the statistics of its bundle, and warn of too few images.

    Args:
        bundle: Model.
        paths: Run folder or bundle folder that it was loaded from.
        options: Rules.
        reporter: Receiver of warnings.

    Raises:
        ConfigError: No threshold can be chosen.
        ModelError: The model has no features, or is an ensemble.
        RunFolderError: It has no statistics, or they are damaged.
    """
    check_features(bundle, option=f"--reject {options}")
    rejector = Rejector(load_rejection_statistics(paths[0]), options, bundle.card)
    for line in rejector.find_warnings():
        reporter.warn(line)
    return rejector


def complete_run_statistics(path: Path, *, batch_size: int, reporter: Reporter) -> None:
    """Measure the statistics of a finished run that has none, as those of older releases.

    They are written into its bundle. A bundle outside of a run is left as it is, for which
    ``create_rejector`` knows a remedy.

    Args:
        path: Run folder or another model.
        batch_size: Images per batch.
        reporter: Receiver of progress and a note.

    Raises:
        DataError: The run has no validation images, or its images are not there.
        StorageError: The disk is full, read-only or fails.
    """
    is_run = (path / "manifest.csv").is_file() and (path / "bundle" / "finetune.json").is_file()
    if not is_run or has_rejection_statistics(path):
        return
    run = run_folder.open_existing(path)
    config = read_stored_config(run)
    manifest = read_stored_manifest(run, config)
    measure_run_statistics(run, config, manifest, batch_size=batch_size, reporter=reporter)
    reporter.note(f"Statistics for --reject added to {run.bundle_dir}")
