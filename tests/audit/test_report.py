"""Findings as files: rows that a spreadsheet reads, pictures of copies that a person sees."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.audit.audit import (
    Audit,
    DuplicateSamples,
    LabelErrorCandidate,
    SuspiciousImage,
    sort_by_severity,
)
from finetune.audit.report import (
    draw_duplicates,
    format_audit_json,
    format_findings_csv,
    merge_findings,
)
from finetune.types import RejectedFile, Sample, Split
from tests.support.pictures import scene

TRAIN, VAL = Split.TRAIN, Split.VAL
HEAD = ["finding", "where", "group", "path", "detail"]


def group(*samples: Sample, exact: bool = True) -> DuplicateSamples:
    return DuplicateSamples(samples, exact)


INSIDE = group(Sample("1", "x", TRAIN), Sample("2", "x", TRAIN), exact=False)
CLASSES = group(Sample('a, "b"/ü\n🐈.png', "x", TRAIN), Sample("4", "y", TRAIN))
SPLITS = group(Sample("5", "x", TRAIN), Sample("6", "x", VAL))
BOTH = group(Sample("7", "x", TRAIN), Sample("8", "y", VAL))


def some_audit(labels: tuple[LabelErrorCandidate, ...] | None = None) -> Audit:
    return Audit(
        num_images=9,
        counts={"all": {"x": 9}},
        sizes={},
        modes={"RGB": 9},
        unreadable=(RejectedFile("no, way.jpg", 'damaged (it says "no")'),),
        duplicates=(INSIDE, CLASSES, SPLITS, BOTH),
        suspicious_images=(SuspiciousImage("s.png", "dark", "95%"),),
        label_errors=labels,
    )


def rows_of(audit: Audit) -> list[list[str]]:
    return list(csv.reader(io.StringIO(format_findings_csv(audit))))


def test_the_most_telling_copies_come_first() -> None:
    assert sort_by_severity([INSIDE, CLASSES, SPLITS, BOTH]) == [BOTH, SPLITS, CLASSES, INSIDE]


def test_every_finding_is_a_row() -> None:
    labels = (LabelErrorCandidate("l.png", "x", "y", 0.1, 0.85),)
    assert rows_of(some_audit(labels)) == [
        HEAD,
        ["unreadable", "", "", "no, way.jpg", 'damaged (it says "no")'],
        ["exact copy", "across classes, across splits", "1", "7", "train x"],
        ["exact copy", "across classes, across splits", "1", "8", "val y"],
        ["exact copy", "across splits", "2", "5", "train x"],
        ["exact copy", "across splits", "2", "6", "val x"],
        ["exact copy", "across classes", "3", 'a, "b"/ü\n🐈.png', "train x"],
        ["exact copy", "across classes", "3", "4", "train y"],
        ["near copy", "inside a class", "4", "1", "train x"],
        ["near copy", "inside a class", "4", "2", "train x"],
        ["dark", "", "", "s.png", "95%"],
        ["label in doubt", "", "", "l.png", "x 0.100, y 0.850"],
    ]


def test_nothing_found_is_a_head_alone() -> None:
    nothing = Audit(1, {"all": {"x": 1}}, {}, {}, (), (), ())
    assert rows_of(nothing) == [HEAD]
    assert rows_of(replace(nothing, duplicates=None)) == [HEAD]


def test_json_holds_everything_and_letters_as_they_are() -> None:
    text = format_audit_json(some_audit())
    assert json.loads(text) == some_audit().to_json()
    assert "ü\\n🐈" in text
    assert text.endswith("}\n")


DOUBTS = (LabelErrorCandidate("l.png", "x", "y", 0.1, 0.85),)


def test_a_written_audit_takes_in_what_is_found_later() -> None:
    """Doubts replace those of earlier, groups take in those that they share an image with."""
    before = some_audit((LabelErrorCandidate("m.png", "x", "y", 0.3, 0.6),))
    grown = group(Sample("2", "x", TRAIN), Sample("6", "x", VAL), Sample("new", "x", VAL))
    audit, findings = merge_findings(
        format_audit_json(before), label_errors=DOUBTS, duplicates=[grown]
    )
    whole = (*grown.samples, SPLITS.samples[0], INSIDE.samples[0])
    expected = replace(
        before, duplicates=(CLASSES, BOTH, group(*whole, exact=False)), label_errors=DOUBTS
    )
    assert json.loads(audit) == expected.to_json()
    assert list(csv.reader(io.StringIO(findings))) == rows_of(expected)
    for again in ([grown], []):
        assert merge_findings(audit, label_errors=DOUBTS, duplicates=again) == (audit, findings)


@pytest.mark.parametrize("copies", [None, ()])
def test_an_audit_without_copies_learns_of_some(
    copies: tuple[DuplicateSamples, ...] | None,
) -> None:
    before = replace(some_audit(), duplicates=copies)
    audit, _ = merge_findings(format_audit_json(before), label_errors=(), duplicates=[INSIDE])
    assert json.loads(audit) == replace(before, duplicates=(INSIDE,), label_errors=()).to_json()
    unchanged, _ = merge_findings(format_audit_json(before), label_errors=(), duplicates=[])
    assert json.loads(unchanged) == replace(before, label_errors=()).to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"copies": [{"paths": ["a"]}]}'])
def test_an_audit_of_another_form_is_not_amended(text: str) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        merge_findings(text, label_errors=DOUBTS, duplicates=[])


def saved(root: Path, images: dict[str, Image.Image]) -> None:
    for name, image in images.items():
        image.save(root / name)


def test_a_picture_shows_the_images_side_by_side(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (100, 200), "blue")
    saved(tmp_path, {"red.png": red, "blue.png": blue})
    sheet = draw_duplicates(group(Sample("red.png", "x"), Sample("blue.png", "y")), tmp_path)
    assert sheet.mode == "RGB"
    assert sheet.size == (320 + 8 + 80 + 8, 160 + 28)
    pixels = np.asarray(sheet)
    assert (pixels[28:, :320] == (255, 0, 0)).all()
    assert (pixels[28:, 328:408] == (0, 0, 255)).all()
    assert (pixels[:26, :408] < 128).any(), "there are captions"


def test_a_file_that_went_away_is_grey(tmp_path: Path) -> None:
    saved(tmp_path, {"a.png": scene(1)})
    sheet = draw_duplicates(group(Sample("a.png", "x"), Sample("gone.png", "x")), tmp_path)
    assert (np.asarray(sheet)[28:, -168:-8] == 128).all()


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (1, 1)])
def test_very_long_images_and_names_fit(tmp_path: Path, size: tuple[int, int]) -> None:
    name = "猫 " + "n" * 180 + ".png"
    saved(tmp_path, {name: scene(1, width=size[0], height=size[1])})
    sheet = draw_duplicates(group(Sample(name, "c" * 99, VAL), Sample(name, "é\n")), tmp_path)
    assert 2 * 9 <= sheet.width <= 2 * (640 + 8)
    assert sheet.height == 188
    sheet.save(tmp_path / "sheet.jpg")


def test_of_many_images_the_telling_ones_are_shown(tmp_path: Path) -> None:
    saved(tmp_path, {"a.png": Image.new("RGB", (9, 9), "red"), "b.png": Image.new("RGB", (9, 9))})
    same = [Sample("a.png", "x", TRAIN) for _ in range(50)]
    sheet = draw_duplicates(group(*same, Sample("b.png", "y", TRAIN)), tmp_path)
    assert sheet.width == 8 * 168
    pixels = np.asarray(sheet)[28:]
    assert [tuple(pixels[80, 168 * n + 80].tolist()) for n in range(3)] == [
        (255, 0, 0), (0, 0, 0), (255, 0, 0),
    ]  # fmt: skip
