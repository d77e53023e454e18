"""Reports: JSON and CSV of an audit, later findings merged into them, pictures of duplicates."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.audit.audit import Audit
from finetune.audit.findings.duplicate_samples import DuplicateSamples, sort_by_severity
from finetune.audit.findings.suspicious_images import SuspiciousImage
from finetune.audit.label_errors import LabelErrorCandidate
from finetune.audit.report import (
    draw_duplicates,
    format_audit_json,
    format_findings_csv,
    merge_findings,
)
from finetune.types import RejectedFile, Sample, Split
from tests.support.pictures import create_scene

TRAIN, VAL = Split.TRAIN, Split.VAL
HEADER = ["finding", "conflicts", "group", "path", "detail"]


def group(*samples: Sample, exact: bool = True) -> DuplicateSamples:
    return DuplicateSamples(samples, exact)


INSIDE = group(Sample("1", "x", TRAIN), Sample("2", "x", TRAIN), exact=False)
CLASSES = group(Sample('a, "b"/ü\n🐈.png', "x", TRAIN), Sample("4", "y", TRAIN))
SPLITS = group(Sample("5", "x", TRAIN), Sample("6", "x", VAL))
BOTH = group(Sample("7", "x", TRAIN), Sample("8", "y", VAL))

LABEL_ERRORS = (LabelErrorCandidate("l.png", "x", "y", 0.1, 0.85),)


def make_audit(label_errors: tuple[LabelErrorCandidate, ...] | None = None) -> Audit:
    return Audit(
        num_images=9,
        class_counts={"all": {"x": 9}},
        size_quantiles={},
        image_modes={"RGB": 9},
        unreadable=(RejectedFile("no, way.jpg", 'damaged (it says "no")'),),
        duplicates=(INSIDE, CLASSES, SPLITS, BOTH),
        suspicious_images=(SuspiciousImage("s.png", "dark", "95%"),),
        label_errors=label_errors,
    )


def rows_of(audit: Audit) -> list[list[str]]:
    return list(csv.reader(io.StringIO(format_findings_csv(audit))))


def test_sort_by_severity_splits_before_classes() -> None:
    assert sort_by_severity([INSIDE, CLASSES, SPLITS, BOTH]) == [BOTH, SPLITS, CLASSES, INSIDE]


def test_format_findings_csv_has_a_row_per_finding() -> None:
    assert rows_of(make_audit(LABEL_ERRORS)) == [
        HEADER,
        ["unreadable", "", "", "no, way.jpg", 'damaged (it says "no")'],
        ["exact duplicate", "classes, splits", "1", "7", "train x"],
        ["exact duplicate", "classes, splits", "1", "8", "val y"],
        ["exact duplicate", "splits", "2", "5", "train x"],
        ["exact duplicate", "splits", "2", "6", "val x"],
        ["exact duplicate", "classes", "3", 'a, "b"/ü\n🐈.png', "train x"],
        ["exact duplicate", "classes", "3", "4", "train y"],
        ["near duplicate", "", "4", "1", "train x"],
        ["near duplicate", "", "4", "2", "train x"],
        ["dark", "", "", "s.png", "95%"],
        ["label error", "", "", "l.png", "x 0.100, y 0.850"],
    ]


def test_format_findings_csv_without_findings_is_a_header() -> None:
    nothing = Audit(1, {"all": {"x": 1}}, {}, {}, (), (), ())
    assert rows_of(nothing) == [HEADER]
    assert rows_of(replace(nothing, duplicates=None)) == [HEADER]


def test_format_audit_json_is_complete_and_not_escaped() -> None:
    text = format_audit_json(make_audit())
    assert json.loads(text) == make_audit().to_json()
    assert "ü\\n🐈" in text
    assert text.endswith("}\n")


def test_merge_findings_merges_groups_and_replaces_label_errors() -> None:
    """Label errors replace the earlier ones; groups that share an image are merged."""
    before = make_audit((LabelErrorCandidate("m.png", "x", "y", 0.3, 0.6),))
    grown = group(Sample("2", "x", TRAIN), Sample("6", "x", VAL), Sample("new", "x", VAL))
    audit, findings = merge_findings(
        format_audit_json(before), label_errors=LABEL_ERRORS, duplicates=[grown]
    )
    merged = (*grown.samples, SPLITS.samples[0], INSIDE.samples[0])
    expected = replace(
        before, duplicates=(CLASSES, BOTH, group(*merged, exact=False)), label_errors=LABEL_ERRORS
    )
    assert json.loads(audit) == expected.to_json()
    assert list(csv.reader(io.StringIO(findings))) == rows_of(expected)
    for again in ([grown], []):
        assert merge_findings(audit, label_errors=LABEL_ERRORS, duplicates=again) == (
            audit,
            findings,
        )


@pytest.mark.parametrize("duplicates", [None, ()])
def test_merge_findings_audit_without_duplicates(
    duplicates: tuple[DuplicateSamples, ...] | None,
) -> None:
    before = replace(make_audit(), duplicates=duplicates)
    audit, _ = merge_findings(format_audit_json(before), label_errors=(), duplicates=[INSIDE])
    assert json.loads(audit) == replace(before, duplicates=(INSIDE,), label_errors=()).to_json()
    unchanged, _ = merge_findings(format_audit_json(before), label_errors=(), duplicates=[])
    assert json.loads(unchanged) == replace(before, label_errors=()).to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "duplicates": [{"paths": ["a"]}]}', '{"version": 3}']
)
def test_merge_findings_damaged_or_later_audit_raises(text: str) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        merge_findings(text, label_errors=LABEL_ERRORS, duplicates=[])


VERSION_1 = """{
  "num_images": 4,
  "counts": {"train": {"x": 3, "y": 1}},
  "imbalance_ratio": 3.0,
  "starved_classes": ["y", "x"],
  "sizes": {"width": [1, 2, 3, 4, 5], "bytes": [6, 7, 8, 9, 10]},
  "modes": {"RGB": 4},
  "unreadable": [{"path": "u.png", "reason": "empty file"}],
  "copies": [
    {"group": 1, "kind": "near", "where": ["across classes"], "paths": ["1", "2"],
     "labels": ["x", "y"], "splits": ["train", "train"]}
  ],
  "suspicious": [{"path": "s.png", "kind": "odd aspect", "detail": "aspect ratio 4.00"}],
  "labels": [
    {"path": "m.png", "label": "x", "likely": "y", "probability": 0.1, "likely_probability": 0.9}
  ],
  "advice": []
}"""
"""An audit as version 0.1 wrote it."""


def test_merge_findings_audit_of_version_1_gets_the_present_keys() -> None:
    grown = group(Sample("2", "y", TRAIN), Sample("3", "y", VAL))
    text, findings = merge_findings(VERSION_1, label_errors=LABEL_ERRORS, duplicates=[grown])
    merged = (*grown.samples, Sample("1", "x", TRAIN))
    expected = Audit(
        num_images=4,
        class_counts={"train": {"x": 3, "y": 1}},
        size_quantiles={"width": (1, 2, 3, 4, 5), "num_bytes": (6, 7, 8, 9, 10)},
        image_modes={"RGB": 4},
        unreadable=(RejectedFile("u.png", "empty file"),),
        duplicates=(group(*merged, exact=False),),
        suspicious_images=(SuspiciousImage("s.png", "extreme aspect ratio", "aspect ratio 4.00"),),
        label_errors=LABEL_ERRORS,
    )
    assert json.loads(text) == expected.to_json()
    assert findings == format_findings_csv(expected)
    again = merge_findings(text, label_errors=LABEL_ERRORS, duplicates=[grown])
    assert again == (text, findings)


def save_all(root: Path, images: dict[str, Image.Image]) -> None:
    for name, image in images.items():
        image.save(root / name)


def test_draw_duplicates_images_are_side_by_side(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (100, 200), "blue")
    save_all(tmp_path, {"red.png": red, "blue.png": blue})
    sheet = draw_duplicates(group(Sample("red.png", "x"), Sample("blue.png", "y")), tmp_path)
    assert sheet.mode == "RGB"
    assert sheet.size == (320 + 8 + 80 + 8, 160 + 28)
    pixels = np.asarray(sheet)
    assert (pixels[28:, :320] == (255, 0, 0)).all()
    assert (pixels[28:, 328:408] == (0, 0, 255)).all()
    assert (pixels[:26, :408] < 128).any(), "captions are drawn"


def test_draw_duplicates_missing_file_is_grey(tmp_path: Path) -> None:
    save_all(tmp_path, {"a.png": create_scene(1)})
    sheet = draw_duplicates(group(Sample("a.png", "x"), Sample("gone.png", "x")), tmp_path)
    assert (np.asarray(sheet)[28:, -168:-8] == 128).all()


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (1, 1)])
def test_draw_duplicates_extreme_sizes_and_names(tmp_path: Path, size: tuple[int, int]) -> None:
    name = "猫 " + "n" * 180 + ".png"
    save_all(tmp_path, {name: create_scene(1, width=size[0], height=size[1])})
    sheet = draw_duplicates(group(Sample(name, "c" * 99, VAL), Sample(name, "é\n")), tmp_path)
    assert 2 * 9 <= sheet.width <= 2 * (640 + 8)
    assert sheet.height == 188
    sheet.save(tmp_path / "sheet.jpg")


def test_draw_duplicates_many_images_distinct_ones_come_first(tmp_path: Path) -> None:
    save_all(
        tmp_path, {"a.png": Image.new("RGB", (9, 9), "red"), "b.png": Image.new("RGB", (9, 9))}
    )
    same = [Sample("a.png", "x", TRAIN) for _ in range(50)]
    sheet = draw_duplicates(group(*same, Sample("b.png", "y", TRAIN)), tmp_path)
    assert sheet.width == 8 * 168
    pixels = np.asarray(sheet)[28:]
    assert [tuple(pixels[80, 168 * n + 80].tolist()) for n in range(3)] == [
        (255, 0, 0), (0, 0, 0), (255, 0, 0),
    ]  # fmt: skip
