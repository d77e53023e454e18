"""Run folder of a cross-validation: its images, its folds and their run folders."""

import csv
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.builders import Training, build_training
from finetune.commands.fit.resume import build_resume_config
from finetune.commands.fit.run_progress import is_complete
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.load import dump_config, replace_values
from finetune.config.schema import Config
from finetune.data.fold_split import build_fold_manifest
from finetune.data.manifest import Manifest, format_manifest
from finetune.errors import DataError
from finetune.system import run_folder
from finetune.system.files import translate_disk_errors
from finetune.system.run_folder import RunFolder
from finetune.types import Sample, Split

RESUMED_KEYS = ("trainer.epochs", "trainer.early_stopping_patience")
"""Keys that a resumed fold takes from the config of the cross-validation, where they were changed.

Others that may change are of the machine, and may differ between the folds.
"""


@dataclass(frozen=True, slots=True, eq=False)
class CrossValidation:
    """A cross-validation in its run folder.

    Attributes:
        run: Run folder, which holds those of the folds.
        config: Its config, resolved but for what each fold measures.
        manifest: Images with the splits train and test.
        folds: Fold of each training image, in manifest order, from 1, shape (N,).
    """

    run: RunFolder
    config: Config
    manifest: Manifest
    folds: NDArray[np.int64]

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        assert self.config.cross_validation.num_folds is not None, "a cross-validation has folds"
        return self.config.cross_validation.num_folds

    @property
    def samples(self) -> list[Sample]:
        """Images that the folds divide, in manifest order."""
        return self.manifest.get_samples(Split.TRAIN)

    @property
    def fold_runs(self) -> list[RunFolder]:
        """Run folders of all folds, which may not exist yet."""
        return [self.get_fold_run(fold) for fold in range(1, self.num_folds + 1)]

    def get_fold_run(self, fold: int) -> RunFolder:
        """Return the run folder of a fold, which may not exist yet."""
        return RunFolder(self.run.path / "folds" / str(fold))

    def build_manifest(self, fold: int) -> Manifest:
        """Return the images of a fold with its validation split."""
        return build_fold_manifest(self.manifest, self.folds, fold)

    def build_part_config(self, run: RunFolder, **values: Any) -> Config:
        """Return the config of a run in this folder; ``section__key`` sets a dotted key."""
        tracking = self.config.tracking
        name = tracking.name or self.run.path.name
        common = {
            "output": str(run.path),
            "resume": "never",
            "tracking.name": f"{name}/{run.path.relative_to(self.run.path)}",
            "tracking.group": tracking.group or name,
        }
        changes = {key.replace("__", "."): value for key, value in values.items()}
        return replace_values(self.config, {**common, **changes})

    def create_part(self, run: RunFolder, config: Config, manifest: Manifest) -> Training:
        """Create the folder of a run in this one, with the audit of all images.

        Returns:
            The objects of the run, as a resumed run has them.

        Raises:
            ConfigError: A setting cannot apply to these images.
            StorageError: The disk is full or not writable.
        """
        training = build_training(config, manifest, is_resumed=True)
        run_folder.create(
            run.path,
            config=dump_config(training.config),
            manifest=format_manifest(training.manifest),
            rejected=_read(self.run.rejected_path),
            audit_json=_read(self.run.audit_json_path),
            audit_csv=_read(self.run.audit_csv_path),
        )
        return training

    def build_fold_resume_config(self, fold: int, changes: dict[str, Any]) -> Config:
        """Return the config of a fold that is resumed.

        Args:
            fold: Fold, from 1.
            changes: Dotted keys to values that differ from those that the run had.
        """
        run = self.get_fold_run(fold)
        stored = read_stored_config(run)
        kept = {}
        for key in RESUMED_KEYS:
            section, _, name = key.partition(".")
            value = getattr(getattr(self.config, section), name)
            if value not in ("auto", getattr(getattr(stored, section), name)):
                kept[key] = value
        return build_resume_config(run, assignments={**kept, **changes})

    def is_fold_complete(self, fold: int) -> bool:
        """Return whether a fold has trained for the epochs of this config."""
        run = self.get_fold_run(fold)
        return run_folder.is_run(run.path) and is_complete(
            run, self.build_fold_resume_config(fold, {})
        )


def open_cross_validation(run: RunFolder, config: Config) -> CrossValidation:
    """Return the cross-validation in a run folder, with a config that may have changed.

    Raises:
        DataError: ``manifest.csv`` or ``folds.csv`` is missing or damaged.
    """
    manifest = read_stored_manifest(run, config)
    try:
        with run.folds_csv_path.open(encoding="utf-8", newline="") as stream:
            fold_of = {row["path"]: int(row["fold"] or 0) for row in csv.DictReader(stream)}
        samples = manifest.get_samples(Split.TRAIN)
        folds = np.array([fold_of[sample.path] for sample in samples], np.int64)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{run.folds_csv_path} is missing or damaged ({error}). The cross-validation cannot be "
            f"resumed; start a new one."
        ) from error
    return CrossValidation(run, config, manifest, folds)


@contextmanager
def lock_creation(path: Path) -> Iterator[None]:
    """Let one of several jobs create a run folder at a path, while the others wait for it.

    On file systems without locks, each prepares it, and the first to finish creates it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    with translate_disk_errors(file):
        lock = file.open("a")
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    file.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """Return the text of a file that the user may have removed."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""
