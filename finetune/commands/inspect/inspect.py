"""The command ``inspect``: an audit of a dataset, written to a folder of its own."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.audit.audit import Audit
from finetune.audit.findings.duplicate_samples import sort_by_severity
from finetune.audit.label_errors import LabelCheck, LabelErrorCandidate
from finetune.audit.report import (
    MAX_DRAWN_GROUPS,
    draw_duplicates,
    format_audit_json,
    format_findings_csv,
)
from finetune.commands.prepare_data import (
    ScannedDataset,
    resolve_data_path,
    resolve_if_path,
    scan_and_audit,
)
from finetune.config.advice import recommend_options
from finetune.config.load import diff_from_defaults, get_explicit_values, replace_values
from finetune.config.schema import Config
from finetune.data.split import count_splits
from finetune.errors import ConfigError, RunFolderError
from finetune.system.files import check_writable, write_folder_atomically, write_text
from finetune.system.given_paths import check_weights_path
from finetune.types import Reporter

_IMAGE_KEYS = (
    "data.path",
    "data.splits",
    "data.task",
    "data.label_columns",
    "data.label_separator",
    "data.group_by",
    "data.image_column",
    "data.label_column",
    "data.group_column",
    "data.max_megapixels",
    "data.pixel_range",
    "data.val_fraction",
    "data.split_seed",
    "data.test_fraction",
    "data.cache",
    "cache.max_gb",
    "output",
)
"""Keys that apply to every audit."""

_BACKBONE_KEYS = (
    "model.backbone",
    "model.weights",
    "model.kwargs",
    "model.pretrained_cfg",
    "data.image_size",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.precision",
    "seed",
)
"""Keys that apply only to an audit with a backbone."""

_PICTURES_DIR = "duplicates"
_AUDIT_NAMES = {"audit.json", "audit.csv", _PICTURES_DIR, "copies"}
"""Entries of an audit folder; version 0.1 named the folder of pictures "copies"."""


@dataclass(frozen=True, slots=True)
class InspectResult:
    """Result of an audit.

    Attributes:
        data: Folder or CSV of the images.
        output: Folder with ``audit.json``, ``audit.csv`` and pictures of the duplicates.
        audit: All findings.
    """

    data: Path
    output: Path
    audit: Audit

    def to_json(self) -> dict[str, Any]:
        """Return the audit as values of JSON, with the data and the output as they were given."""
        return {**self.audit.to_json(), "data": str(self.data), "output": str(self.output)}


def inspect(config: Config, *, reporter: Reporter | None = None) -> InspectResult:
    """Audit the images of a folder or CSV and write a report; the images are never changed.

    Args:
        config: ``data.path``, ``data.max_megapixels``, ``data.val_fraction``, ``output`` and the
            cache. With ``model.backbone`` or ``model.weights`` the features of that backbone are
            searched for label errors and cropped duplicates.
        reporter: Receives progress, notes and warnings.

    Raises:
        FinetuneError: The config, the data or the output folder is unsuitable.
    """
    reporter = reporter or Reporter()
    path = resolve_data_path(config)
    output = Path(config.output or Path("runs") / _build_default_name(path)).expanduser()
    _check_keys(config)
    _check_output(output, path)
    check_writable(output, "Choose another --output.")
    if _has_backbone(config):
        check_weights_path(config.model.weights)
        # imports torch, which an audit without a backbone does not need
        from finetune.models.backbone import check_backbone_name

        check_backbone_name(config.model.backbone)
    dataset = scan_and_audit(config, path, reporter=reporter, audit_only=True)
    label_errors = label_check = None
    if _has_backbone(config):
        dataset, label_errors, label_check = _run_backbone_audit(config, dataset, reporter)
    audit = replace(
        _add_advice(config, dataset.audit()),
        data=str(path.resolve()),
        label_errors=label_errors,
        label_check=label_check,
    )
    _write_report(output, audit, dataset, reporter)
    return InspectResult(path, output, audit)


def _check_keys(config: Config) -> None:
    """Check that all keys that were set apply to an audit.

    Raises:
        ConfigError: The keys that do not apply.
    """
    known = {*_IMAGE_KEYS, *(_BACKBONE_KEYS if _has_backbone(config) else ())}
    unused = []
    for key in diff_from_defaults(config):
        names = key.split(".")
        # keys that are dictionaries, like model.kwargs, have keys of the user below them
        if known.isdisjoint({names[0], ".".join(names[:2])}):
            unused.append(key)
    if unused:
        audit = "an audit" if _has_backbone(config) else "an audit without --backbone"
        raise ConfigError(
            f"{', '.join(unused)} cannot apply to {audit}. Set it for finetune fit instead."
        )


def _has_backbone(config: Config) -> bool:
    """Return whether a backbone or its weights were named, even if the default ones."""
    return bool({"model.backbone", "model.weights"} & get_explicit_values(config).keys())


def _run_backbone_audit(
    config: Config, dataset: ScannedDataset, reporter: Reporter
) -> tuple[ScannedDataset, tuple[LabelErrorCandidate, ...] | None, LabelCheck | None]:
    """Add the findings of a pretrained backbone, unless there is only one class."""
    if len({name for sample in dataset.samples for name in sample.class_names}) < 2:
        reporter.note(
            "The images have a single class: the audit with --backbone needs at least two."
        )
        return dataset, None, None
    # imports torch, which an audit without a backbone does not need
    from finetune.commands.inspect.features import audit_with_backbone

    return audit_with_backbone(
        replace_values(
            config,
            {
                "model.weights": resolve_if_path(config.model.weights),
                "data.pixel_range": dataset.pixel_range,
            },
        ),
        dataset,
        reporter,
    )


def _add_advice(config: Config, audit: Audit) -> Audit:
    """Add recommended options for training, if the images contain training images."""
    advice = (
        _build_training_advice(config, audit)
        if audit.class_counts.keys() & {"train", "all"}
        else []
    )
    if any("splits" in group.conflicts for group in audit.duplicates or ()):
        reason = "held-out images have duplicates in the training data"
        advice.append({"option": "data.leakage", "value": "drop", "reason": reason})
    if small := _list_small_classes(config, audit):
        reason = f"too few images to hold some out, which stops fit: {', '.join(small)}"
        advice.append({"option": "data.min_images_per_class", "value": "1", "reason": reason})
    return replace(audit, advice=advice)


def _list_small_classes(config: Config, audit: Audit) -> list[str]:
    """Return the classes that a drawn split refuses, with their numbers of images."""
    counts = audit.class_counts.get("all")
    if counts is None or audit.labels is not None:
        return []
    minimum = count_splits(config.data.val_fraction, config.data.test_fraction)
    small = [f"{name} ({count})" for name, count in counts.items() if count < minimum]
    return [*small[:5], *([f"{len(small) - 5} more"] if len(small) > 5 else [])]


def _build_training_advice(config: Config, audit: Audit) -> list[dict[str, Any]]:
    is_drawn = "all" in audit.class_counts
    fraction = config.data.val_fraction + config.data.test_fraction if is_drawn else 0.0
    shorter = min(audit.size_quantiles["width"][2], audit.size_quantiles["height"][2])
    if len(audit.training_counts) < 2:
        return []
    num_images = None if audit.labels is None else audit.labels.num_images
    choices = recommend_options(
        audit.training_counts,
        shorter_side=shorter,
        val_fraction=fraction,
        multi_label_images=None
        if num_images is None
        else num_images["all" if is_drawn else "train"],
    )
    return [
        {"option": option, "value": choice.value, "reason": choice.reason}
        for option, choice in choices.items()
    ]


def _build_default_name(data: Path) -> str:
    path = data.resolve()
    name = path.name if data.is_dir() else path.stem
    return f"audit-{re.sub(r'[*?]', '', name).strip('-_.') or 'data'}"


def _check_output(folder: Path, data: Path) -> None:
    """Check that the output replaces nothing but an audit of the same data.

    It may lie among the images, where every scan passes over audits.

    Raises:
        RunFolderError: It would.
    """
    if folder.exists() and not (folder.is_dir() and _is_audit(folder)):
        raise RunFolderError(
            f"{folder} exists and is not an audit folder. Choose another --output."
        )
    other = _read_audit_source(folder)
    if other is not None and other != str(data.resolve()):
        raise RunFolderError(f"{folder} contains the audit of {other}. Choose another --output.")


def _read_audit_source(folder: Path) -> str | None:
    """Return the data whose audit a folder contains, or None if it does not record them."""
    with suppress(OSError, ValueError, AttributeError):
        data = json.loads((folder / "audit.json").read_text(encoding="utf-8")).get("data")
        return data if isinstance(data, str) else None
    return None


def _is_audit(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    return not names or ("audit.json" in names and names <= _AUDIT_NAMES)


def _write_report(folder: Path, audit: Audit, dataset: ScannedDataset, reporter: Reporter) -> None:
    groups = sort_by_severity(audit.duplicates or ())[:MAX_DRAWN_GROUPS]
    with write_folder_atomically(folder) as temporary:
        write_text(temporary / "audit.json", format_audit_json(audit))
        write_text(temporary / "audit.csv", format_findings_csv(audit))
        if groups:
            (temporary / _PICTURES_DIR).mkdir()
        reporter.start("drawing duplicates", len(groups))
        for number, group in enumerate(groups, 1):
            picture = draw_duplicates(group, dataset.root, options=dataset.fingerprints.options)
            picture.save(temporary / _PICTURES_DIR / f"{number:04}.jpg", quality=90)
            reporter.advance()
        reporter.finish()
