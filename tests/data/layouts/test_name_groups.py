"""Tests of groups that a pattern finds in the names of images."""

from pathlib import Path

import pytest

from finetune.config.load import build_config, parse_assignments
from finetune.data.layouts.name_groups import (
    describe_groups,
    describe_undivided_classes,
    group_by_name,
    summarise_groups,
)
from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import scan
from finetune.errors import ConfigError, DataError
from finetune.types import Sample, Split
from tests.support.helpers import RecordingReporter, write_images

FRAMES = [f"cat/video{video}_{frame}.png" for video in range(3) for frame in range(4)]
SLIDES = ["a/S1/t1.png", "b/S1/t2.png", "a/S2/t1.png", "b/S2/t2.png"]


def make_samples(*paths: str) -> list[Sample]:
    return [Sample(path, path.partition("/")[0]) for path in paths]


def find_groups(pattern: str, *paths: str) -> list[str]:
    return [sample.group for sample in group_by_name(make_samples(*paths), pattern).samples]


@pytest.mark.parametrize(
    ("pattern", "paths", "expected"),
    [
        (r"(?P<group>[^/_]+)_", FRAMES[:5], ["video0"] * 4 + ["video1"]),
        (r"(video\d)_(\d)", FRAMES[:5], ["video0"] * 4 + ["video1"]),
        (r"(\w+)/(?P<group>S\d)", SLIDES, ["S1", "S1", "S2", "S2"]),
        (r"^(.+)/", SLIDES, ["a/S1", "b/S1", "a/S2", "b/S2"]),
        (r"S(\d)|x()", SLIDES, ["1", "1", "2", "2"]),
        (r"(?i)s(?P<group>1)|S(?:2)", SLIDES, ["1", "1", "", ""]),
    ],
)
def test_pattern_is_searched_in_the_relative_path(
    pattern: str, paths: list[str], expected: list[str]
) -> None:
    assert find_groups(pattern, *paths) == expected


def test_images_that_do_not_match_are_counted_and_warned_of_above_a_tenth() -> None:
    few = group_by_name(make_samples(*FRAMES, "dog/x.png"), r"(video\d)")
    assert (few.warning, few.samples[-1].group) == ("", "")
    assert few.note.startswith("1 of 13 images is a group of its own: ")
    assert "(such as dog/x.png)" in few.note
    many = group_by_name(make_samples(*FRAMES, "dog/x.png", "dog/y.png"), r"(video\d)")
    assert many.note == ""
    assert many.warning.startswith("2 of 14 images are groups of their own: ")
    assert "14.3%" in many.warning


def test_pattern_that_separates_all_images_is_warned_of() -> None:
    result = group_by_name(make_samples(*FRAMES), r"(.+)\.png")
    assert "gives every image a group of its own (such as 'cat/video0_0' of " in result.warning


@pytest.mark.parametrize("pattern", ["^([^/]+/[^/]+)/", r"^[^/]+/([ab]\d)/"])
def test_pattern_is_searched_below_the_split_folders(tmp_path: Path, pattern: str) -> None:
    """Groups are those of the same images without split folders."""
    names = [
        f"{label}/{label}{clip}/{n}.png" for label in "ab" for clip in range(2) for n in range(2)
    ]
    options = TableOptions(group_by=pattern)
    plain = scan(write_images(tmp_path / "plain", *names), tables=options)
    splits = [f"{split}/{name}" for split in ("train", "val") for name in names]
    for root in (tmp_path / "d", tmp_path / "d2/data"):
        write_images(root, *splits)
        found = scan(root.parent if root.name == "data" else root, tables=options).samples
        expected = [sample.group for sample in plain.samples]
        assert [sample.group for sample in found] == expected * 2
    assert sorted({group.rpartition("/")[2] for group in expected}) == ["a0", "a1", "b0", "b1"]


def test_classes_in_one_group_each_are_described() -> None:
    """Images without a group, and classes of one image, can be divided or need not be."""
    samples = make_samples("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "cow/1.png")
    captured = describe_undivided_classes(group_by_name(samples, "([a-z]+)/").samples)
    assert captured.startswith("All images of each of 2 classes (such as 'cat') are in one group")
    one = describe_undivided_classes(group_by_name(samples, r"(cat)/").samples)
    assert one.startswith("All images of class 'cat' are in one group ('cat'), which")
    assert describe_undivided_classes(samples) == ""
    assert describe_undivided_classes(group_by_name(samples, r"(\d)").samples) == ""


def test_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"finds no group in any of 12 paths \(such as cat/video0_0"
    ):
        group_by_name(make_samples(*FRAMES), r"slide(\d)")


def test_column_of_groups_and_pattern_exclude_each_other(tmp_path: Path) -> None:
    text = "path,label,group\na_1.png,cat,g1\na_2.png,dog,\n"
    (tmp_path / "list.csv").write_text(text)
    options = TableOptions(group_by="(a)_")
    with pytest.raises(DataError, match=r"column of groups \(a_1\.png is in 'g1'\)"):
        scan(tmp_path / "list.csv", tables=options)
    (tmp_path / "list.csv").write_text(text.replace("g1", ""))
    found = scan(tmp_path / "list.csv", tables=options).samples
    assert [sample.group for sample in found] == ["a", "a"]


def test_scan_notes_and_warns(tmp_path: Path) -> None:
    root = write_images(tmp_path, *FRAMES, "dog/x.png", "dog/video9_1.png", "dog/video9_2.png")
    reporter = RecordingReporter()
    result = scan(root, tables=TableOptions(group_by=r"(video\d)"), reporter=reporter)
    assert [note[:20] for note in result.notes] == ["1 of 15 images is a "]
    assert reporter.warnings == []
    scan(root, tables=TableOptions(group_by=r"(dog/v)"), reporter=reporter)
    assert len(reporter.warnings) == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("video", r"'video' captures no group\. .*\(\?P<group>\[\^_\]\+\)_"),
        ("(video", r"not a regular expression: missing \), unterminated subpattern at character 1"),
        ("video)", r"unbalanced parenthesis at character 6"),
        ("([a-", r"unterminated character set at character 2"),
        ("(?P<group)x", "not a regular expression: .* at character 5"),
    ],
)
def test_pattern_is_checked_before_any_image(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({}, assignments=parse_assignments([f"data.group_by={pattern}"]))


@pytest.mark.parametrize("pattern", ["[^/]+/(v)", "(a: b)", "{2}(x) # y", "'(q)'", "(?P<group>.)_"])
def test_pattern_on_the_command_line_is_taken_as_it_is_typed(pattern: str) -> None:
    if pattern == "{2}(x) # y":  # no expression may start with a number of repetitions
        pattern = "y{2}(x) # y"
    config = build_config({}, assignments=parse_assignments([f"data.group_by={pattern}"]))
    assert config.data.group_by in (pattern, pattern.strip("'"))


def test_summary_counts_groups_and_those_that_splits_divide() -> None:
    samples = group_by_name(make_samples(*FRAMES, "dog/x.png"), r"(video\d)").samples
    summary = summarise_groups(samples[1:], "pattern")
    assert summary is not None
    assert describe_groups(summary.to_json()) == (
        "3 groups by data.group_by, largest 4 images (video1); 1 image without a group"
    )
    assert summary.num_divided == 0
    divided = [
        Sample("train/1.png", "a", Split.TRAIN, "g"),
        Sample("train/2.png", "a", Split.TRAIN, "h"),
        Sample("val/3.png", "a", Split.VAL, "g"),
        Sample("val/4.png", "a", Split.VAL, "g"),
    ]
    summary = summarise_groups(divided, None)
    assert summary is not None
    assert (summary.num_divided, summary.divided_example) == (1, ("train/1.png", "val/3.png"))
    assert describe_groups(summary.to_json()).startswith("2 groups by the group column")
    assert summarise_groups(make_samples(*FRAMES), "pattern") is None
