"""Tests of groups that the names of images suggest."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.data.layouts.group_suggestion import suggest_groups
from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import scan
from finetune.types import Sample, Split
from tests.support.helpers import ROOT, write_images

SHARED = ROOT.parent / "shared" / "data"

# a name for class c of two, object o of six in this class, image i of eight of this object
Namer = Callable[[int, int, int], str]
CLASSES = ("cat", "dog")


def make_samples(write: Namer) -> list[Sample]:
    return [
        Sample(f"{label}/{write(number, member, image)}", label)
        for number, label in enumerate(CLASSES)
        for member in range(6)
        for image in range(8)
    ]


def unique(c: int, o: int) -> int:
    return 10 * c + o + 1


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda c, o, i: f"vid{unique(c, o)}_frame{i:03}.jpg", id="frames"),
        pytest.param(lambda c, o, i: f"patient{unique(c, o):02}-tile{i}.png", id="tiles"),
        pytest.param(lambda c, o, i: f"S17-{unique(c, o)}_x{i % 4 * 256}_y{i // 4}.png", id="xy"),
        pytest.param(lambda c, o, i: f"vid{unique(c, o)}frame{i}.jpg", id="no_separator"),
        pytest.param(lambda c, o, i: f"clip{unique(c, o)}/{i}.jpg", id="folders"),
        pytest.param(lambda c, o, i: f"paper{unique(c, o):02}-{i:03}.png", id="hands"),
        pytest.param(lambda c, o, i: f"P{unique(c, o)}_{i // 4}_{i}.png", id="two_counters"),
        pytest.param(
            lambda c, o, i: f"IMG_{unique(c, o)}_jpg.rf.{hash((c, o, i)) & 0xFFFFFF:06x}.jpg",
            id="copies",
        ),
        pytest.param(lambda c, o, i: f"{o:05}_{i:05}.ppm", id="tracks_numbered_in_each_class"),
    ],
)
def test_pattern_that_is_suggested_finds_the_objects(write: Namer) -> None:
    samples = make_samples(write)
    suggestion = suggest_groups(samples)
    assert suggestion is not None
    assert (suggestion.num_groups, suggestion.num_images) == (12, 96)
    expression = re.compile(suggestion.pattern)
    found = [match[1] for sample in samples if (match := expression.search(sample.path))]
    assert len(found) == 96
    assert all(len(set(found[start : start + 8])) == 1 for start in range(0, 96, 8))
    assert len(set(found)) == 12
    line = suggestion.describe()
    assert f"data.group_by='{suggestion.pattern}'" in line
    assert "12 groups of about 8 images" in line


def number(c: int, o: int, i: int) -> int:
    return 100 * c + 8 * o + i


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda c, o, i: f"IMG_{number(c, o, i):04}.jpg", id="camera"),
        pytest.param(lambda c, o, i: f"{number(c, o, i):04}.jpg", id="numbers"),
        pytest.param(lambda c, o, i: f"n0144076{c}_{number(c, o, i)}.JPEG", id="imagenet"),
        pytest.param(lambda c, o, i: f"n014407{c}{o}_{i}.JPEG", id="imagenet_merged"),
        pytest.param(lambda c, o, i: f"{CLASSES[c]}.{number(c, o, i)}.jpg", id="cats_and_dogs"),
        pytest.param(lambda c, o, i: f"{CLASSES[c]}{number(c, o, i)}.jpg", id="trashnet"),
        pytest.param(lambda c, o, i: f"{CLASSES[c]}_{number(c, o, i)}.jpg", id="class_prefix"),
        pytest.param(lambda c, o, i: f"00{c}_{number(c, o, i):04}.jpg", id="class_number"),
        pytest.param(lambda c, o, i: f"breed{'abcdef'[o]}_{i}.jpg", id="kinds"),
        pytest.param(lambda c, o, i: f"IMG_2024051{o}_10{c}{i}00.jpg", id="days"),
        pytest.param(lambda c, o, i: f"IMG-2024051{o}-WA{c}{i}.jpg", id="messenger"),
        pytest.param(lambda c, o, i: f"{9 * number(c, o, i)}_{i:x}ad5c6f9.jpg", id="flickr"),
        pytest.param(lambda c, o, i: f"person{number(c, o, i)}_virus_{i}.jpg", id="one_each"),
        pytest.param(lambda c, o, i: f"vid{o}_frame{8 * c + i + 7}.jpg", id="several_classes"),
        pytest.param(lambda c, o, i: f"2019_{number(c, o, i)}.jpg", id="year"),
        pytest.param(lambda c, o, i: f"DSC{o + c * 6}_{i:04}.jpg", id="camera_with_digit"),
        pytest.param(lambda c, o, i: f"{10 + o}0{c + 1}2019_{i:03}.jpg", id="day_month_year"),
        pytest.param(lambda c, o, i: f"190{c + 1}1{o}_{i:03}.jpg", id="short_year"),
        pytest.param(lambda c, o, i: f"type{unique(c, o)}_{i:03}.jpg", id="types"),
        pytest.param(lambda c, o, i: f"train_{unique(c, o)}_{i:04}.jpg", id="split"),
        pytest.param(
            lambda c, o, i: f"{unique(c, o):03}.Bird_{i:04}_{50494 + i}.jpg", id="species"
        ),
        pytest.param(lambda c, o, i: f"flower{4 * c + o % 4}_{8 * o + i}.jpg", id="few_in_a_class"),
        pytest.param(lambda c, o, i: f"leaf{o % 4}_{8 * (o // 4) + i}.jpg", id="few_again"),
    ],
)
def test_ordinary_names_suggest_nothing(write: Namer) -> None:
    assert suggest_groups(make_samples(write)) is None


def test_splits_that_keep_groups_together_suggest_nothing() -> None:
    samples = make_samples(lambda c, o, i: f"vid{unique(c, o)}_frame{i}.jpg")
    sides = (Split.TRAIN, Split.VAL)
    apart = [replace(s, split=sides[row // 8 % 3 == 2]) for row, s in enumerate(samples)]
    assert suggest_groups(apart) is None
    divided = [replace(s, split=sides[row % 8 == 7]) for row, s in enumerate(samples)]
    assert suggest_groups(divided) is not None
    # a validation split is drawn from train, and divides groups there
    no_val = [
        replace(s, split=Split.TRAIN if s.split is Split.TRAIN else Split.TEST) for s in apart
    ]
    assert suggest_groups(no_val) is not None


def test_scan_notes_the_suggestion_unless_there_are_groups(tmp_path: Path) -> None:
    names = [
        f"{label}/vid{unique(c, o)}_frame{i}.png"
        for c, label in enumerate(CLASSES)
        for o in range(2)
        for i in range(3)
    ]
    write_images(tmp_path, *names)
    (note,) = scan(tmp_path).notes
    pattern = note.partition("data.group_by='")[2].partition("'")[0]
    result = scan(tmp_path, tables=TableOptions(group_by=pattern))
    assert result.notes == ()
    assert {sample.group for sample in result.samples} == {"vid1", "vid2", "vid11", "vid12"}
    assert scan(tmp_path, tables=TableOptions().adapt_to_other_data()).notes == ()


@pytest.mark.parametrize("name", ["hymenoptera", "mnist", "mnist/train", "trashnet"])
def test_real_photos_suggest_nothing(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs ../shared/data/{name}")
    assert not [note for note in scan(SHARED / name).notes if "group" in note]
