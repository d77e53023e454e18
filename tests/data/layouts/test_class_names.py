"""Tests of names of classes: cleaned, merged and compared."""

from pathlib import Path

import pytest

from finetune.data.layouts.class_names import (
    describe_similar_classes,
    find_similar_classes,
    normalize_class_name,
)
from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import Sample
from tests.support.helpers import write_images


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        (" ants\u00a0", "ants"),
        ("\ufeffants\u200b", "ants"),
        ("an\u00adts\u200e", "ants"),
        ("an\u200dts\u200c", "ants"),
        ("ants\t", "ants"),
        ("red  ants", "red  ants"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",) * 2,
        ("\U0001f469\u200d\U0001f33e",) * 2,
        ("ants\ufe0f", "ants"),
        ("\u043c\u0443\ufe0e", "\u043c\u0443"),
        ("\u2800an\u2800ts", "ants"),
        ("\u3164ants\u115f\u1160\uffa0", "ants"),
        ("an\u034fts\U000e0101", "ants"),
        ("\u200b\u200d\u043c", "\u043c"),
        ("\u2764\ufe0f\u200d\U0001f525",) * 2,
        ("1\ufe0f\u20e3",) * 2,
        ("\u00a9\ufe0f\ufe0f", "\u00a9\ufe0f"),
        ("\u845b\U000e0100",) * 2,
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f",) * 2,
        ("ants\U000e0067", "ants"),
        ("\u2801\u2800\u2803",) * 2,
    ],
    ids=ascii,
)
def test_normalize_class_name_removes_only_what_does_not_show(name: str, cleaned: str) -> None:
    assert normalize_class_name(name) == cleaned


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Ants", "ants"),
        ("1", "1.0"),
        ("1", "01"),
        ("0", "0,0"),
        ("red ants", "red  ants"),
        ("red ants", "red\u00a0ants"),
        ("red_ants", "Red-Ants"),
        ("ants", "\u0430nts"),
        ("\uff41nts", "ants"),
        ("straße", "STRASSE"),
        ("bee's", "bee\u2019s"),
        ("\u201cbee\u201d", '"bee"'),
        ("bee`s", "bee\uff07s"),
        ("\u2764", "\u2764\ufe0f"),
    ],
    ids=ascii,
)
def test_find_similar_classes_names_both_with_counts(first: str, second: str) -> None:
    samples = [Sample("1", first), Sample("2", second), Sample("3", second), Sample("4", "other")]
    (found,) = find_similar_classes(samples)
    assert dict(zip(found.names, found.num_images, strict=True)) == {first: 1, second: 2}
    text = describe_similar_classes(found.names, found.num_images)
    assert "(1 image)" in text
    assert "(2 images)" in text


@pytest.mark.parametrize(
    ("first", "second"),
    [("ant", "ants"), ("1", "10"), ("1.5", "15"), ("c", "c++"), ("a", "b"), ("crème", "creme")],
)
def test_find_similar_classes_other_names(first: str, second: str) -> None:
    assert find_similar_classes([Sample("1", first), Sample("2", second)]) == []


def test_describe_similar_classes_tells_letters_and_blanks_apart() -> None:
    text = describe_similar_classes(["ants", "\u0430nts", "a\u00a0nts"], [1, 2, 3])
    assert "with cyrillic small letter a (U+0430)" in text
    assert "'a\\u00a0nts'" in text


def test_scan_folders_of_one_cleaned_name_are_merged_and_noted(tmp_path: Path) -> None:
    write_images(tmp_path, "ants/1.png", "ants /2.png", "\u200bbees/3.png", "wasps/4.png")
    result = scan(tmp_path)
    assert {(s.path, s.label) for s in result.samples} == {
        ("ants/1.png", "ants"),
        ("ants /2.png", "ants"),
        ("\u200bbees/3.png", "bees"),
        ("wasps/4.png", "wasps"),
    }
    assert result.notes == (
        "Class folders 'ants' and 'ants ' are read as one class, 'ants'.",
        "Class folder '\\u200bbees' is read as 'bees'.",
    )


def test_scan_same_folder_in_two_splits_is_not_noted(tmp_path: Path) -> None:
    write_images(tmp_path, "train/ants/1.png", "train/bees/2.png", "val/ants/3.png")
    assert scan(tmp_path).notes == ()


def test_scan_folder_without_visible_name_raises_data_error(tmp_path: Path) -> None:
    write_images(tmp_path, "ants/1.png", "\u200b /2.png")
    with pytest.raises(DataError, match="no visible character"):
        scan(tmp_path)
