"""An audit as files: JSON with everything, a CSV with a row a finding, pictures of the copies."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune.audit.audit import Audit, DuplicateSamples, LabelErrorCandidate, duplicates_to_json
from finetune.data.images.decode import decode_image
from finetune.errors import DataError
from finetune.types import Sample, Split

MAX_DRAWN_GROUPS = 200
"""Groups of copies that pictures are made of, the most telling first."""

_MAX_IMAGES_PER_GROUP = 8
_TILE_HEIGHT, _CAPTION_HEIGHT = 160, 28

_COLUMNS = ("finding", "where", "group", "path", "detail")


def format_audit_json(audit: Audit) -> str:
    """Return everything as JSON."""
    return _format_json(audit.to_json())


def format_findings_csv(audit: Audit) -> str:
    """Return a row for each finding, and for each image of a group of copies, as CSV."""
    return _format_csv(audit.to_json())


def merge_findings(
    audit: str,
    *,
    label_errors: Sequence[LabelErrorCandidate],
    duplicates: Sequence[DuplicateSamples],
) -> tuple[str, str]:
    """Return an audit, as it was written, and its findings with what was found since.

    Args:
        audit: JSON.
        label_errors: In doubt; they replace those of an earlier time.
        duplicates: Groups that have grown; they take in those that they share an image with.

    Raises:
        KeyError: The audit is of another form.
        TypeError: It is of another form.
        ValueError: It is damaged.
    """
    tree = json.loads(audit)
    groups = [DuplicateSamples.from_json(one) for one in tree["copies"] or ()]
    for grown in duplicates:
        paths = {sample.path for sample in grown.samples}
        parts = [one for one in groups if paths & {sample.path for sample in one.samples}]
        more = (s for part in parts for s in part.samples if s.path not in paths)
        # as two parts that share an image would be one group, none is there twice
        groups = [one for one in groups if one not in parts]
        groups.append(DuplicateSamples((*grown.samples, *more), is_exact=False))
    looked = tree["copies"] is not None or bool(duplicates)
    tree["copies"] = duplicates_to_json(groups) if looked else None
    tree["labels"] = [one.to_json() for one in label_errors]
    return _format_json(tree), _format_csv(tree)


def draw_duplicates(group: DuplicateSamples, root: Path) -> Image.Image:
    """Return the images of a group side by side, each with its class and name.

    Args:
        group: The copies.
        root: What their paths are relative to.
    """
    tiles = []
    for sample in _sort_distinct_first(group)[:_MAX_IMAGES_PER_GROUP]:
        try:
            image = decode_image(root / sample.path)
        except DataError:  # it was there when it was looked at
            image = Image.new("RGB", (_TILE_HEIGHT, _TILE_HEIGHT), "grey")
        width = max(1, round(image.width * _TILE_HEIGHT / image.height))
        split = f" ({sample.split})" if sample.split else ""
        tiles.append((image.resize((min(width, 4 * _TILE_HEIGHT), _TILE_HEIGHT)), sample, split))
    sheet = Image.new(
        "RGB", (sum(t.width + 8 for t, _, _ in tiles), _TILE_HEIGHT + _CAPTION_HEIGHT), "white"
    )
    draw = ImageDraw.Draw(sheet)
    left = 0
    for tile, sample, split in tiles:
        sheet.paste(tile, (left, _CAPTION_HEIGHT))
        most = tile.width // 6  # the built-in letters are 6 pixels wide
        name = Path(sample.path).name
        for line, words in enumerate((sample.label + split, name)):
            draw.text((left, 1 + 13 * line), _truncate(words, most), fill="black")
        left += tile.width + 8
    return sheet


def _format_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _sort_distinct_first(group: DuplicateSamples) -> list[Sample]:
    """Return the images of a group, the first of each split and class before the others."""
    first: dict[tuple[Split | None, str], Sample] = {}
    for sample in group.samples:
        first.setdefault((sample.split, sample.label), sample)
    chosen = {id(sample) for sample in first.values()}
    return [*first.values(), *(s for s in group.samples if id(s) not in chosen)]


def _format_csv(audit: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_iter_rows(audit))
    return text.getvalue()


def _iter_rows(audit: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
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


def _truncate(text: str, max_length: int) -> str:
    text = text.encode("latin-1", "replace").decode("latin-1")  # all that those letters have
    return text if len(text) <= max_length else text[: max(0, max_length - 2)] + ".."
