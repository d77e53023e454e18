"""Origin of a run: its images, its commit, and the runs that it belongs to."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.builders import Training
from finetune.commands.report.run_session import find_git_commit
from finetune.config.sections.tracking import TrackingConfig
from finetune.data.manifest import Manifest
from finetune.system.run_folder import RunFolder
from finetune.training.loggers.tracked_records import DatasetRecord
from finetune.types import Split

SWEEP_VARIABLE = "WANDB_SWEEP_ID"
"""Environment variable with the sweep of a run that an agent has started."""

RUN_ID_VARIABLE = "WANDB_RUN_ID"
"""Environment variable with the id of the run that an agent has started."""

_ARRAY_VARIABLE = "SLURM_ARRAY_JOB_ID"


@dataclass(frozen=True, slots=True)
class RunFamily:
    """Runs that a run belongs to.

    Attributes:
        group: Group of runs that are shown together; None for none, or that of the environment.
        job_type: Kind of the run; None for that of the environment.
    """

    group: str | None
    job_type: str | None


def find_family(run: RunFolder, tracking: TrackingConfig) -> RunFamily:
    """Return the group and the kind of a run, from its config, its folder and the environment."""
    group, job_type = tracking.group, tracking.job_type
    array = os.environ.get(_ARRAY_VARIABLE)
    if group is None and array and "WANDB_RUN_GROUP" not in os.environ:
        group = f"slurm-{array}"
    if job_type is None and "WANDB_JOB_TYPE" not in os.environ:
        job_type = _find_job_type(run)
    return RunFamily(group, job_type)


def describe_dataset(run: RunFolder, manifest: Manifest) -> DatasetRecord:
    """Return the digest of the images of a run, and their number by split and class."""
    rows = sorted(
        f"{sample.path}\0{sample.split}\0{sample.digest}\0" + "\0".join(sample.class_names)
        for sample in manifest.samples
    )
    digest = hashlib.blake2b("\n".join(rows).encode(), digest_size=16).hexdigest()
    counts = {split: manifest.count_per_class(split) for split in Split}
    facts = {
        "num_classes": len(manifest.classes),
        "num_images": {split.value: len(manifest.get_samples(split)) for split in Split},
        "class_counts": {
            split.value: dict(zip(manifest.classes, counts[split], strict=True))
            for split in Split
            if any(counts[split])
        },
    }
    return DatasetRecord(digest, run.manifest_path, facts)


def describe_origin(training: Training, dataset: DatasetRecord) -> dict[str, Any]:
    """Return what the trackers keep as the config of a run: every setting by dotted key.

    Besides the settings: the dataset with its digest and class counts, and the commit of the
    working folder.
    """
    facts = {f"dataset.{name}": value for name, value in dataset.facts.items()}
    # flat where the names are few and known, as sections of a config are
    num_images = facts.pop("dataset.num_images")
    return {
        **_flatten(training.config.model_dump(mode="json")),
        **facts,
        **{f"dataset.num_images.{split}": count for split, count in num_images.items()},
        "dataset.digest": dataset.digest,
        "git.commit": find_git_commit(Path.cwd()),
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _find_job_type(run: RunFolder) -> str:
    parent = run.path.parent
    if run.cross_validation_run is not run:
        return "fold" if parent.name == "folds" else "refit"
    if parent.name == "trials" and (parent.parent / "study.json").is_file():
        return "trial"
    return "sweep" if os.environ.get(SWEEP_VARIABLE) else "train"
