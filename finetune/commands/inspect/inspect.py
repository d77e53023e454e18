"""Know the images before anything trains on them."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.audit.audit import Audit, LabelErrorCandidate, sort_by_severity
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
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.errors import ConfigError, RunFolderError
from finetune.system.files import check_writable, write_folder_atomically, write_text
from finetune.types import Reporter

_IMAGE_KEYS = (
    "data.path",
    "data.max_megapixels",
    "data.val_fraction",
    "data.test_fraction",
    "data.cache",
    "cache.max_gb",
    "output",
)
"""What an audit depends on."""

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
"""What else there is to say where a backbone is asked."""


@dataclass(frozen=True, slots=True)
class InspectResult:
    """What was found, and where it is written.

    Attributes:
        data: The images.
        output: Folder with ``audit.json``, ``audit.csv`` and pictures of the copies.
        audit: Everything.
    """

    data: Path
    output: Path
    audit: Audit

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.audit.to_json(), "data": str(self.data), "output": str(self.output)}


def inspect(config: Config, *, reporter: Reporter | None = None) -> InspectResult:
    """Look at all images of a folder or CSV and write what is found; the images stay untouched.

    Args:
        config: ``model.backbone`` or ``model.weights`` also ask a backbone which labels it doubts,
            and for copies that are cut; ``data.path``, ``data.max_megapixels``,
            ``data.val_fraction``, ``output`` and the cache.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Reporter()
    path = resolve_data_path(config)
    output = Path(config.output or Path("runs") / _build_default_name(path)).expanduser()
    _check_keys(config)
    _check_output(output, path)
    check_writable(output, "Choose another --output.")
    found = scan_and_audit(config, path, reporter=reporter, audit_only=True)
    labels = None
    if _has_backbone(config):
        found, labels = _run_backbone_audit(config, found, reporter)
    audit = replace(
        _add_advice(config, found.audit()), data=str(path.resolve()), label_errors=labels
    )
    _write_report(output, audit, found, reporter)
    return InspectResult(path, output, audit)


def _check_keys(config: Config) -> None:
    """Refuse keys that nothing here depends on.

    Raises:
        ConfigError: Names them.
    """
    known = _IMAGE_KEYS + (_BACKBONE_KEYS if _has_backbone(config) else ())
    # below a key that is a dictionary lie the user's own
    parts = (key.split(".") for key in diff_from_defaults(config))
    idle = [".".join(part) for part in parts if not {".".join(part[:n]) for n in (1, 2)} & {*known}]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} cannot apply to an audit"
            f"{'' if _has_backbone(config) else ' that asks no --backbone'}. Leave it for "
            f"finetune fit."
        )


def _has_backbone(config: Config) -> bool:
    return bool({"model.backbone", "model.weights"} & diff_from_defaults(config).keys())


def _run_backbone_audit(
    config: Config, dataset: ScannedDataset, reporter: Reporter
) -> tuple[ScannedDataset, tuple[LabelErrorCandidate, ...] | None]:
    """Return what a pretrained backbone adds; of a single class it is not asked."""
    if len({sample.label for sample in dataset.samples}) < 2:
        reporter.note("There is a single class, and so nothing that a backbone would be fitted to.")
        return dataset, None
    from finetune.commands.inspect.features import (
        audit_with_backbone,
    )  # torch, which nothing else here needs

    return audit_with_backbone(
        replace_values(config, {"model.weights": resolve_if_path(config.model.weights)}),
        dataset,
        reporter,
    )


def _add_advice(config: Config, audit: Audit) -> Audit:
    advice = _build_training_advice(config, audit) if audit.counts.keys() & {"train", "all"} else []
    if any("splits" in group.conflicts for group in audit.duplicates or ()):
        reason = "held-out images have copies that are seen before"
        advice.append({"option": "data.leakage", "value": "drop", "reason": reason})
    return replace(audit, advice=advice)


def _build_training_advice(config: Config, audit: Audit) -> list[dict[str, Any]]:
    drawn = "all" in audit.counts
    share = config.data.val_fraction + config.data.test_fraction if drawn else 0.0
    shorter = min(audit.sizes["width"][2], audit.sizes["height"][2])
    if len(audit.training_counts) < 2:
        return []
    chosen = recommend_options(audit.training_counts, shorter_side=shorter, val_fraction=share)
    return [
        {"option": option, "value": choice.value, "reason": choice.reason}
        for option, choice in chosen.items()
    ]


def _build_default_name(data: Path) -> str:
    whole = data.resolve()
    return f"audit-{whole.stem if data.is_file() else whole.name}"


def _check_output(folder: Path, data: Path) -> None:
    """Refuse to replace anything but an earlier audit, and to write pictures among the images."""
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise RunFolderError(
            f"{folder} lies among the images of {data}, where its pictures would be taken for "
            f"some. Choose another --output."
        )
    if folder.exists() and not (folder.is_dir() and _is_audit(folder)):
        raise RunFolderError(
            f"{folder} exists and is no audit of finetune's. Choose another --output."
        )
    other = _read_audit_source(folder)
    if other is not None and other != str(data.resolve()):
        raise RunFolderError(f"{folder} holds the audit of {other}. Choose another --output.")


def _read_audit_source(folder: Path) -> str | None:
    """Return the data whose audit a folder holds, or None where it does not say."""
    with suppress(OSError, ValueError, AttributeError):
        data = json.loads((folder / "audit.json").read_text(encoding="utf-8")).get("data")
        return data if isinstance(data, str) else None
    return None


def _is_audit(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    return not names or ("audit.json" in names and names <= {"audit.json", "audit.csv", "copies"})


def _write_report(folder: Path, audit: Audit, dataset: ScannedDataset, reporter: Reporter) -> None:
    groups = sort_by_severity(audit.duplicates or ())[:MAX_DRAWN_GROUPS]
    with write_folder_atomically(folder) as temporary:
        write_text(temporary / "audit.json", format_audit_json(audit))
        write_text(temporary / "audit.csv", format_findings_csv(audit))
        if groups:
            (temporary / "copies").mkdir()
        reporter.start("drawing copies", len(groups))
        for number, group in enumerate(groups, 1):
            picture = draw_duplicates(group, dataset.root)
            picture.save(temporary / "copies" / f"{number:04}.jpg", quality=90)
            reporter.advance()
        reporter.finish()
