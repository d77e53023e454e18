"""An audit as files: JSON with everything, a CSV with a row a finding, pictures of the copies."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune.data.audit import Audit, CopyGroup, LabelSuspect
from finetune.data.decode import decode_image
from finetune.errors import DataError
from finetune.types import Sample, Split

MOST_PICTURES = 200
"""Groups of copies that pictures are made of, the most telling first."""

_MOST_IMAGES = 8
_HEIGHT, _CAPTION = 160, 28

_DOUBT = "label in doubt"
_COLUMNS = ("finding", "where", "group", "path", "detail")


def write_audit(audit: Audit) -> str:
    """Return everything as JSON."""
    return _json_text(audit.as_json())


def write_findings(audit: Audit) -> str:
    """Return a row for each finding, and for each image of a group of copies, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(audit))
    return text.getvalue()


def add_labels(audit: str, findings: str, labels: Sequence[LabelSuspect]) -> tuple[str, str]:
    """Return an audit and its findings, as they were written, with the labels in doubt.

    Doubts of an earlier time are replaced.

    Raises:
        ValueError: The audit is damaged.
    """
    tree = {**json.loads(audit), "labels": [one.as_json() for one in labels]}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_label_rows(labels))
    before = io.StringIO()
    rows = (row for row in csv.reader(io.StringIO(findings)) if row[:1] != [_DOUBT])
    csv.writer(before, lineterminator="\n").writerows(rows)
    return _json_text(tree), before.getvalue() + text.getvalue()


def telling_first(groups: Sequence[CopyGroup]) -> list[CopyGroup]:
    """Return groups of copies, those across splits first, then those across classes."""
    return sorted(groups, key=lambda g: ("splits" not in g.across, "classes" not in g.across))


def picture_of_copies(group: CopyGroup, root: Path) -> Image.Image:
    """Return the images of a group side by side, each with its class and name.

    Args:
        group: The copies.
        root: What their paths are relative to.
    """
    tiles = []
    for sample in _unlike_first(group)[:_MOST_IMAGES]:
        try:
            image = decode_image(root / sample.path)
        except DataError:  # it was there when it was looked at
            image = Image.new("RGB", (_HEIGHT, _HEIGHT), "grey")
        width = max(1, round(image.width * _HEIGHT / image.height))
        split = f" ({sample.split})" if sample.split else ""
        tiles.append((image.resize((min(width, 4 * _HEIGHT), _HEIGHT)), sample, split))
    sheet = Image.new("RGB", (sum(t.width + 8 for t, _, _ in tiles), _HEIGHT + _CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    left = 0
    for tile, sample, split in tiles:
        sheet.paste(tile, (left, _CAPTION))
        most = tile.width // 6  # the built-in letters are 6 pixels wide
        name = Path(sample.path).name
        for line, words in enumerate((sample.label + split, name)):
            draw.text((left, 1 + 13 * line), _shortened(words, most), fill="black")
        left += tile.width + 8
    return sheet


def _json_text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _unlike_first(group: CopyGroup) -> list[Sample]:
    """Return the images of a group, the first of each split and class before the others."""
    first: dict[tuple[Split | None, str], Sample] = {}
    for sample in group.samples:
        first.setdefault((sample.split, sample.label), sample)
    chosen = {id(sample) for sample in first.values()}
    return [*first.values(), *(s for s in group.samples if id(s) not in chosen)]


def _rows(audit: Audit) -> Iterator[tuple[str, str, str, str, str]]:
    for entry in audit.unreadable:
        yield "unreadable", "", "", entry.path, entry.reason
    for number, group in enumerate(telling_first(audit.copies or ()), 1):
        tree = group.as_json()
        where = ", ".join(tree["where"])
        for sample in group.samples:
            detail = f"{sample.split} {sample.label}" if sample.split else sample.label
            yield f"{tree['kind']} copy", where, str(number), sample.path, detail
    for suspect in audit.suspects:
        yield suspect.kind, "", "", suspect.path, suspect.detail
    yield from _label_rows(audit.labels or ())


def _label_rows(labels: Sequence[LabelSuspect]) -> Iterator[tuple[str, str, str, str, str]]:
    for one in labels:
        detail = f"{one.label} {one.probability:.3f}, {one.likely} {one.likely_probability:.3f}"
        yield _DOUBT, "", "", one.path, detail


def _shortened(words: str, most: int) -> str:
    words = words.encode("latin-1", "replace").decode("latin-1")  # all that those letters have
    return words if len(words) <= most else words[: max(0, most - 2)] + ".."
