"""Know the images before anything trains on them."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.audit.audit import Audit, LabelSuspect, telling_first
from finetune.audit.report import (
    MOST_PICTURES,
    picture_of_copies,
    write_audit,
    write_findings,
)
from finetune.commands.prepare_data import Inspected, absolute, data_path, inspected
from finetune.config.advice import advise
from finetune.config.load import differences, replaced
from finetune.config.schema import Config
from finetune.errors import ConfigError, RunFolderError
from finetune.system.files import atomic_folder, check_writable, write_text
from finetune.types import Reporter

_OF_IMAGES = (
    "data.path",
    "data.max_megapixels",
    "data.val_fraction",
    "data.test_fraction",
    "data.cache",
    "cache.max_gb",
    "output",
)
"""What an audit depends on."""

_OF_BACKBONE = (
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

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.audit.as_json(), "data": str(self.data), "output": str(self.output)}


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
    path = data_path(config)
    output = Path(config.output or Path("runs") / _default_name(path)).expanduser()
    _check_keys(config)
    _check_output(output, path)
    check_writable(output, "Choose another --output.")
    found = inspected(config, path, reporter=reporter, always=True)
    labels = None
    if _asks_a_backbone(config):
        found, labels = _asked(config, found, reporter)
    audit = replace(_advised(config, found.audit()), data=str(path.resolve()), labels=labels)
    _write(output, audit, found, reporter)
    return InspectResult(path, output, audit)


def _check_keys(config: Config) -> None:
    """Refuse keys that nothing here depends on.

    Raises:
        ConfigError: Names them.
    """
    known = _OF_IMAGES + (_OF_BACKBONE if _asks_a_backbone(config) else ())
    # below a key that is a dictionary lie the user's own
    parts = (key.split(".") for key in differences(config))
    idle = [".".join(part) for part in parts if not {".".join(part[:n]) for n in (1, 2)} & {*known}]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} cannot apply to an audit"
            f"{'' if _asks_a_backbone(config) else ' that asks no --backbone'}. Leave it for "
            f"finetune fit."
        )


def _asks_a_backbone(config: Config) -> bool:
    return bool({"model.backbone", "model.weights"} & differences(config).keys())


def _asked(
    config: Config, found: Inspected, reporter: Reporter
) -> tuple[Inspected, tuple[LabelSuspect, ...] | None]:
    """Return what a pretrained backbone adds; of a single class it is not asked."""
    if len({sample.label for sample in found.samples}) < 2:
        reporter.note("There is a single class, and so nothing that a backbone would be fitted to.")
        return found, None
    from finetune.commands.inspect.features import asked  # torch, which nothing else here needs

    return asked(
        replaced(config, {"model.weights": absolute(config.model.weights)}), found, reporter
    )


def _advised(config: Config, audit: Audit) -> Audit:
    advice = _for_training(config, audit) if audit.counts.keys() & {"train", "all"} else []
    if any("splits" in group.across for group in audit.copies or ()):
        reason = "held-out images have copies that are seen before"
        advice.append({"option": "data.leaks", "value": "drop", "reason": reason})
    return replace(audit, advice=advice)


def _for_training(config: Config, audit: Audit) -> list[dict[str, Any]]:
    drawn = "all" in audit.counts
    share = config.data.val_fraction + config.data.test_fraction if drawn else 0.0
    shorter = min(audit.sizes["width"][2], audit.sizes["height"][2])
    if len(audit.training_counts) < 2:
        return []
    chosen = advise(audit.training_counts, shorter_side=shorter, val_share=share)
    return [
        {"option": option, "value": choice.value, "reason": choice.reason}
        for option, choice in chosen.items()
    ]


def _default_name(data: Path) -> str:
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
    other = _audited(folder)
    if other is not None and other != str(data.resolve()):
        raise RunFolderError(f"{folder} holds the audit of {other}. Choose another --output.")


def _audited(folder: Path) -> str | None:
    """Return the data whose audit a folder holds, or None where it does not say."""
    with suppress(OSError, ValueError, AttributeError):
        data = json.loads((folder / "audit.json").read_text(encoding="utf-8")).get("data")
        return data if isinstance(data, str) else None
    return None


def _is_audit(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    return not names or ("audit.json" in names and names <= {"audit.json", "audit.csv", "copies"})


def _write(folder: Path, audit: Audit, found: Inspected, reporter: Reporter) -> None:
    groups = telling_first(audit.copies or ())[:MOST_PICTURES]
    with atomic_folder(folder) as temporary:
        write_text(temporary / "audit.json", write_audit(audit))
        write_text(temporary / "audit.csv", write_findings(audit))
        if groups:
            (temporary / "copies").mkdir()
        reporter.start("drawing copies", len(groups))
        for number, group in enumerate(groups, 1):
            picture = picture_of_copies(group, found.root)
            picture.save(temporary / "copies" / f"{number:04}.jpg", quality=90)
            reporter.advance()
        reporter.finish()
