"""An audit as files: JSON with everything, a CSV with a row a finding, pictures of the copies."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune.audit.audit import Audit, CopyGroup, LabelSuspect, copies_as_json
from finetune.data.images.decode import decode_image
from finetune.errors import DataError
from finetune.types import Sample, Split

MOST_PICTURES = 200
"""Groups of copies that pictures are made of, the most telling first."""

_MOST_IMAGES = 8
_HEIGHT, _CAPTION = 160, 28

_COLUMNS = ("finding", "where", "group", "path", "detail")


def write_audit(audit: Audit) -> str:
    """Return everything as JSON."""
    return _json_text(audit.as_json())


def write_findings(audit: Audit) -> str:
    """Return a row for each finding, and for each image of a group of copies, as CSV."""
    return _csv_text(audit.as_json())


def amended(
    audit: str, *, labels: Sequence[LabelSuspect], copies: Sequence[CopyGroup]
) -> tuple[str, str]:
    """Return an audit, as it was written, and its findings with what was found since.

    Args:
        audit: JSON.
        labels: In doubt; they replace those of an earlier time.
        copies: Groups that have grown; they take in those that they share an image with.

    Raises:
        KeyError: The audit is of another form.
        TypeError: It is of another form.
        ValueError: It is damaged.
    """
    tree = json.loads(audit)
    groups = [CopyGroup.from_json(one) for one in tree["copies"] or ()]
    for grown in copies:
        paths = {sample.path for sample in grown.samples}
        parts = [one for one in groups if paths & {sample.path for sample in one.samples}]
        more = (s for part in parts for s in part.samples if s.path not in paths)
        # as two parts that share an image would be one group, none is there twice
        groups = [one for one in groups if one not in parts]
        groups.append(CopyGroup((*grown.samples, *more), exact=False))
    looked = tree["copies"] is not None or bool(copies)
    tree["copies"] = copies_as_json(groups) if looked else None
    tree["labels"] = [one.as_json() for one in labels]
    return _json_text(tree), _csv_text(tree)


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


def _csv_text(audit: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(audit))
    return text.getvalue()


def _rows(audit: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    for one in audit["unreadable"]:
        yield "unreadable", "", "", one["path"], one["reason"]
    for group in audit["copies"] or ():
        where, number = ", ".join(group["where"]), str(group["group"])
        for path, label, split in zip(
            group["paths"], group["labels"], group["splits"], strict=True
        ):
            detail = f"{split} {label}" if split else label
            yield f"{group['kind']} copy", where, number, path, detail
    for one in audit["suspicious"]:
        yield one["kind"], "", "", one["path"], one["detail"]
    for one in audit["labels"] or ():
        own, likely = one["probability"], one["likely_probability"]
        detail = f"{one['label']} {own:.3f}, {one['likely']} {likely:.3f}"
        yield "label in doubt", "", "", one["path"], detail


def _shortened(words: str, most: int) -> str:
    words = words.encode("latin-1", "replace").decode("latin-1")  # all that those letters have
    return words if len(words) <= most else words[: max(0, most - 2)] + ".."
