"""New cross-validation: its folds, its plan, and the text of its first files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.report import format_audit_json, format_findings_csv
from finetune.commands.cross_validation.fold_runs import CrossValidation
from finetune.commands.fit.prepare import check_new_run, load_run_data, prepare_run
from finetune.commands.prepare_data import resolve_data_path
from finetune.config.load import dump_config
from finetune.config.schema import Config
from finetune.data.fold_split import NEVER_HELD_OUT, assign_sample_folds, build_fold_manifest
from finetune.data.manifest import format_manifest, format_rejected
from finetune.data.multi_label.multi_hot import count_labels
from finetune.errors import ConfigError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count, format_csv, format_duration

_MAX_SHOWN = 5
"""Labels that a warning names."""


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
    minimum = config.data.min_images_per_class
    folds = assign_sample_folds(
        samples,
        num_folds,
        seed=config.split_seed,
        min_images=None if minimum == "auto" else minimum,
    )
    first = build_fold_manifest(data.manifest, folds, 1)
    training, plan, _ = prepare_run(
        resolved_paths,
        reporter,
        data=replace(data, manifest=first),
        given=config,
        held_out=_list_held_out(samples, folds, num_folds),
    )
    cross_validation = CrossValidation(
        RunFolder(Path(plan["run_dir"])), training.config, data.manifest, folds
    )
    plan["cross_validation"] = _describe_folds(cross_validation, plan)
    reporter.note(_format_folds(cross_validation, plan["cross_validation"]))
    if text := _describe_missing_labels(cross_validation):
        reporter.warn(text)
    texts = {
        "config": dump_config(training.config),
        "manifest": format_manifest(data.manifest),
        "rejected": format_rejected(data.rejected),
        "audit_json": format_audit_json(data.audit),
        "audit_csv": format_findings_csv(data.audit),
        "folds_csv": _format_fold_table(samples, folds),
    }
    return cross_validation, plan, texts


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


def _list_held_out(
    samples: list[Sample], folds: NDArray[np.int64], num_folds: int
) -> dict[int, list[Sample]]:
    """Return the images that each fold holds out."""
    numbers = folds.tolist()
    return {
        fold: [sample for sample, own in zip(samples, numbers, strict=True) if own == fold]
        for fold in range(1, num_folds + 1)
    }


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


def _format_folds(cross_validation: CrossValidation, described: dict[str, Any]) -> str:
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
        images = format_count(only_train, "image")
        text += (
            f" {images} only train: each label is in the training images of every fold."
            if cross_validation.manifest.is_multi_label
            else f" {images} of classes in one group only train."
        )
    if described["seconds"] is not None:
        text += f" All folds take about {format_duration(described['seconds'])}."
    return text


def _describe_missing_labels(cross_validation: CrossValidation) -> str:
    """Return the warning of labels of which a fold holds out no image; "" without any."""
    manifest = cross_validation.manifest
    if not manifest.is_multi_label:
        return ""
    total = count_labels(cross_validation.samples)
    folds_of: dict[str, set[int]] = {}
    for sample, fold in zip(cross_validation.samples, cross_validation.folds.tolist(), strict=True):
        for name in sample.class_names:
            folds_of.setdefault(name, set()).add(fold)
    rare = [
        name
        for name in manifest.classes
        if len(folds_of[name] - {NEVER_HELD_OUT}) < cross_validation.num_folds
    ]
    if not rare:
        return ""
    shown = [f"'{name}': {format_count(total[name], 'image')}" for name in rare[:_MAX_SHOWN]]
    return (
        f"{len(rare)} of {format_count(len(manifest.classes), 'label')} "
        f"{'is' if len(rare) == 1 else 'are'} not held out by every fold "
        f"({', '.join(shown)}{', …' if len(rare) > _MAX_SHOWN else ''}): average precision of a "
        f"fold leaves out the labels that it lacks, and macro F1 counts them as 0 if they are "
        f"predicted."
    )


def _format_fold_table(samples: list[Sample], folds: NDArray[np.int64]) -> str:
    """Return the folds as CSV of path,label,fold; the fold is empty for images that only train."""
    rows = [
        (sample.path, sample.label, fold if fold != NEVER_HELD_OUT else "")
        for sample, fold in zip(samples, folds.tolist(), strict=True)
    ]
    return format_csv(("path", "label", "fold"), rows)
