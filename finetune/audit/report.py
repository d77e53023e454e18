"""Audit reports: JSON with everything, CSV with a row per finding, pictures of duplicates."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune.audit.audit import AUDIT_VERSION, Audit
from finetune.audit.findings.duplicate_samples import DuplicateSamples, duplicates_to_json
from finetune.audit.label_errors import LabelCheck, LabelErrorCandidate
from finetune.data.images.decode import decode_image
from finetune.data.layouts.class_names import describe_similar_classes
from finetune.errors import DataError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions, Sample, Split
from finetune.units import format_csv

MAX_DRAWN_GROUPS = 200
"""Number of duplicate groups that are drawn, by severity."""

_MAX_IMAGES_PER_GROUP = 8
_TILE_HEIGHT, _CAPTION_HEIGHT = 160, 28

_COLUMNS = ("finding", "conflicts", "group", "path", "detail")

_RENAMED_KEYS = {
    "counts": "class_counts",
    "starved_classes": "under_represented_classes",
    "sizes": "size_quantiles",
    "modes": "image_modes",
    "copies": "duplicates",
    "suspicious": "suspicious_images",
    "labels": "label_errors",
}
"""Keys of version 1 and what they are called now."""


def format_audit_json(audit: Audit) -> str:
    """Return the whole audit as JSON."""
    return _format_json(audit.to_json())


def format_findings_csv(audit: Audit) -> str:
    """Return a CSV row for each finding, and for each image of a duplicate group."""
    return format_csv(_COLUMNS, _iter_rows(audit.to_json()))


def parse_audit(text: str) -> dict[str, Any]:
    """Return a written audit with the present names of its keys.

    Raises:
        KeyError: The audit lacks a key.
        TypeError: The audit has a value of another type.
        ValueError: The audit is damaged, or of a later version.
    """
    return _upgrade(json.loads(text))


def merge_findings(
    audit: str,
    *,
    label_errors: Sequence[LabelErrorCandidate],
    duplicates: Sequence[DuplicateSamples],
    label_check: LabelCheck | None = None,
) -> tuple[str, str]:
    """Return the JSON and the CSV of a written audit, extended by later findings.

    Args:
        audit: JSON of this version or of version 1, whose keys are renamed.
        label_errors: Likely label errors; they replace those of the audit.
        duplicates: New or grown groups; each is merged with those that share an image with it.
        label_check: Accuracy of the classifier that the label errors follow from.

    Raises:
        KeyError: The audit lacks a key.
        TypeError: The audit has a value of another type.
        ValueError: The audit is damaged, or of a later version.
    """
    tree = parse_audit(audit)
    groups = [DuplicateSamples.from_json(group) for group in tree["duplicates"] or ()]
    for grown in duplicates:
        paths = {sample.path for sample in grown.samples}
        merged = [one for one in groups if paths & {sample.path for sample in one.samples}]
        # the groups of an audit are disjoint, so that no image is added twice
        added = (s for one in merged for s in one.samples if s.path not in paths)
        groups = [one for one in groups if one not in merged]
        groups.append(DuplicateSamples((*grown.samples, *added), is_exact=False))
    were_searched = tree["duplicates"] is not None or bool(duplicates)
    tree["duplicates"] = duplicates_to_json(groups) if were_searched else None
    tree["label_errors"] = [candidate.to_json() for candidate in label_errors]
    tree["label_check"] = None if label_check is None else label_check.to_json()
    return _format_json(tree), format_csv(_COLUMNS, _iter_rows(tree))


def draw_duplicates(
    group: DuplicateSamples, root: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS
) -> Image.Image:
    """Draw the images of a group side by side, each with its class and file name.

    Args:
        group: Group of duplicates; at most eight images are drawn.
        root: Folder to which relative paths refer.
        options: How the images were read.
    """
    tiles = []
    for sample in _sort_distinct_first(group)[:_MAX_IMAGES_PER_GROUP]:
        try:
            image = decode_image(root / sample.path, options=options)
        except DataError:  # deleted or damaged since it was audited
            image = Image.new("RGB", (_TILE_HEIGHT, _TILE_HEIGHT), "grey")
        width = max(1, round(image.width * _TILE_HEIGHT / image.height))
        split = f" ({sample.split})" if sample.split else ""
        tiles.append((image.resize((min(width, 4 * _TILE_HEIGHT), _TILE_HEIGHT)), sample, split))
    sheet = Image.new(
        "RGB",
        (sum(tile.width + 8 for tile, _, _ in tiles), _TILE_HEIGHT + _CAPTION_HEIGHT),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    left = 0
    for tile, sample, split in tiles:
        sheet.paste(tile, (left, _CAPTION_HEIGHT))
        max_length = tile.width // 6  # the built-in font is 6 pixels wide
        name = Path(sample.path).name
        for line, text in enumerate((sample.label + split, name)):
            draw.text((left, 1 + 13 * line), _truncate(text, max_length), fill="black")
        left += tile.width + 8
    return sheet


def _format_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _upgrade(tree: dict[str, Any]) -> dict[str, Any]:
    """Return an audit with the keys of the present version.

    Raises:
        TypeError: The audit is not an object.
        ValueError: It is of a later version.
    """
    if not isinstance(tree, dict):
        raise TypeError("the audit is not a JSON object")
    version = tree.pop("version", 1)
    if version > AUDIT_VERSION:
        raise ValueError(f"version {version} of the audit is later than {AUDIT_VERSION}")
    if version < 2:
        tree = {_RENAMED_KEYS.get(key, key): value for key, value in tree.items()}
        sizes = tree["size_quantiles"]
        tree["size_quantiles"] = {
            "num_bytes" if name == "bytes" else name: values for name, values in sizes.items()
        }
        tree["suspicious_images"] = [
            {**image, "kind": "extreme aspect ratio"} if image["kind"] == "odd aspect" else image
            for image in tree["suspicious_images"]
        ]
    added: dict[str, Any] = {"pixel_range": "full", "sixteen_bit_files": None}
    return {
        "version": AUDIT_VERSION,
        **added,
        "layout": [],
        "groups": None,
        "similar_classes": [],
        "label_check": None,
        **tree,
    }


def _sort_distinct_first(group: DuplicateSamples) -> list[Sample]:
    """Return the images of a group, the first one of each split and class before the others."""
    first: dict[tuple[Split | None, str], Sample] = {}
    for sample in group.samples:
        first.setdefault((sample.split, sample.label), sample)
    chosen = {id(sample) for sample in first.values()}
    return [*first.values(), *(s for s in group.samples if id(s) not in chosen)]


def _iter_rows(audit: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of the CSV in the order of its columns."""
    for rejected in audit["unreadable"]:
        yield "unreadable", "", "", rejected["path"], rejected["reason"]
    for similar in audit["similar_classes"]:
        yield "similar class names", "", "", "", describe_similar_classes(**similar)
    for group in audit["duplicates"] or ():
        conflicts, number = ", ".join(group["conflicts"]), str(group["group"])
        for path, label, split in zip(
            group["paths"], group["labels"], group["splits"], strict=True
        ):
            detail = f"{split} {label}" if split else label
            yield f"{group['kind']} duplicate", conflicts, number, path, detail
    for image in audit["suspicious_images"]:
        yield image["kind"], "", "", image["path"], image["detail"]
    for error in audit["label_errors"] or ():
        own, predicted = error["label_probability"], error["predicted_probability"]
        detail = f"{error['label']} {own:.3f}, {error['predicted_label']} {predicted:.3f}"
        yield "label error", "", "", error["path"], detail


def _truncate(text: str, max_length: int) -> str:
    """Return text of at most so many letters that the built-in font can draw."""
    # the built-in font has no other letters than those of Latin-1
    text = text.encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= max_length else text[: max(0, max_length - 2)] + ".."
