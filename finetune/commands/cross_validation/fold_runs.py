"""Run folder of a cross-validation: its images, its folds and their run folders."""

import csv
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.report import format_audit_json, format_findings_csv
from finetune.builders import Training, build_training
from finetune.commands.fit.prepare import check_new_run, load_run_data, prepare_run
from finetune.commands.fit.resume import build_resume_config, is_complete
from finetune.commands.prepare_data import resolve_data_path
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.load import dump_config, replace_values
from finetune.config.schema import Config
from finetune.data.fold_split import NEVER_HELD_OUT, assign_sample_folds, build_fold_manifest
from finetune.data.manifest import Manifest, format_manifest, format_rejected
from finetune.errors import ConfigError, DataError
from finetune.system import run_folder
from finetune.system.files import translate_disk_errors
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count, format_csv, format_duration

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


def prepare_cross_validation(
    config: Config, reporter: Reporter
) -> tuple[CrossValidation, dict[str, Any], dict[str, str]]:
    """Return a new cross-validation, its plan, and the text of its first files; nothing is written.

    The plan is that of the first fold, from which all folds take the settings that depend on their
    images, but for those that each fold measures.

    Raises:
        FinetuneError: Something that the user can fix.
    """
    num_folds = config.cross_validation.num_folds
    assert num_folds is not None, "a cross-validation has folds"
    _check_fractions(config)
    all_folds = config.cross_validation.model_copy(update={"fold": None})
    # keeps which fields were set explicitly
    config = config.model_copy(update={"cross_validation": all_folds, "resume": "never"})
    check_new_run(config)
    resolved_paths, data = load_run_data(config, reporter)
    samples = data.manifest.get_samples(Split.TRAIN)
    if any(sample.labels is not None for sample in samples):
        raise ConfigError(
            f"cross_validation.num_folds={num_folds} cannot apply to images with several labels: "
            f"folds are stratified by one class of each image. Leave it out."
        )
    minimum = config.data.min_images_per_class
    folds = assign_sample_folds(
        samples,
        num_folds,
        seed=config.split_seed,
        min_images=None if minimum == "auto" else minimum,
    )
    first = build_fold_manifest(data.manifest, folds, 1)
    training, plan, _ = prepare_run(
        resolved_paths, reporter, data=replace(data, manifest=first), given=config
    )
    cross_validation = CrossValidation(
        RunFolder(Path(plan["run_dir"])), training.config, data.manifest, folds
    )
    plan["cross_validation"] = _describe_folds(cross_validation, plan)
    reporter.note(_format_folds(plan["cross_validation"]))
    texts = {
        "config": dump_config(training.config),
        "manifest": format_manifest(data.manifest),
        "rejected": format_rejected(data.rejected),
        "audit_json": format_audit_json(data.audit),
        "audit_csv": format_findings_csv(data.audit),
        "folds_csv": _format_fold_table(samples, folds),
    }
    return cross_validation, plan, texts


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


def _check_fractions(config: Config) -> None:
    """Check that no fraction of a validation split is set.

    Raises:
        ConfigError: There is one.
    """
    if "val_fraction" in config.data.model_fields_set:
        num_folds = config.cross_validation.num_folds
        raise ConfigError(
            f"data.val_fraction={config.data.val_fraction:g} cannot apply to "
            f"cross_validation.num_folds={num_folds}: each fold holds out 1 of {num_folds} parts "
            f"of the images. Leave one of them out."
        )


def _describe_folds(cross_validation: CrossValidation, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the folds as the plan has them, as JSON values."""
    folds = cross_validation.folds
    sizes = np.bincount(folds, minlength=cross_validation.num_folds + 1)[1:]
    seconds = plan.get("cost", {}).get("seconds")
    return {
        "num_folds": cross_validation.num_folds,
        "num_images": len(folds),
        "num_held_out": sizes.tolist(),
        "num_only_train": int((folds == NEVER_HELD_OUT).sum()),
        "final": cross_validation.config.cross_validation.final,
        "seconds": None if seconds is None else seconds * cross_validation.num_folds,
        "data": str(resolve_data_path(cross_validation.config)),
    }


def _format_folds(described: dict[str, Any]) -> str:
    """Return the line on the folds below the plan."""
    sizes = described["num_held_out"]
    low, high = min(sizes), max(sizes)
    size = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    only_train = described["num_only_train"]
    text = (
        f"Cross-validation: {described['num_folds']} folds, each holding out {size} of "
        f"{format_count(described['num_images'], 'image')}; the plan is that of fold 1."
    )
    if only_train:
        text += f" {format_count(only_train, 'image')} of classes in one group only train."
    if described["seconds"] is not None:
        text += f" All folds take about {format_duration(described['seconds'])}."
    return text


def _format_fold_table(samples: list[Sample], folds: NDArray[np.int64]) -> str:
    """Return the folds as CSV of path,label,fold; the fold is empty for images that only train."""
    rows = [
        (sample.path, sample.label, fold if fold != NEVER_HELD_OUT else "")
        for sample, fold in zip(samples, folds.tolist(), strict=True)
    ]
    return format_csv(("path", "label", "fold"), rows)


def _read(path: Path) -> str:
    """Return the text of a file that the user may have removed."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""
