"""Samples note which of them show the same, and learn of further copies."""

from pathlib import Path

from finetune.audit.duplicate_groups import (
    add_duplicate_groups,
    assign_duplicate_groups,
    collect_duplicate_groups,
)
from finetune.audit.near_duplicates import DuplicateGroup
from finetune.data.manifest import Manifest
from finetune.types import Sample, Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def manifest(*words: str) -> Manifest:
    splits = (TRAIN, VAL, TEST)
    samples = (Sample(str(n), "x", splits[n % 3], "g", word) for n, word in enumerate(words))
    return Manifest(Path("/photos"), ("x",), tuple(samples))


def words_of(found: Manifest) -> list[str]:
    return [sample.duplicate_group for sample in found.samples]


def grown(before: Manifest, *groups: tuple[int, ...]) -> Manifest:
    return add_duplicate_groups(before, [[before.samples[row] for row in rows] for rows in groups])


def test_samples_are_told_of_their_copies() -> None:
    samples = [Sample(str(row), "x", TRAIN, "g") for row in range(5)]
    found = assign_duplicate_groups(
        samples, [DuplicateGroup((0, 3), is_exact=True), DuplicateGroup((1, 4), is_exact=False)]
    )
    assert [sample.duplicate_group for sample in found] == ["1", "2", "", "1", "2"]
    assert [Sample(s.path, s.label, s.split, s.group) for s in found] == samples
    assert assign_duplicate_groups(samples, []) == samples


def test_what_samples_note_is_read_as_groups() -> None:
    samples = manifest("2", "", "7", "2", "9", "7").samples
    assert [copies.rows for copies in collect_duplicate_groups(samples)] == [(0, 3), (2, 5)]


def test_a_new_group_takes_a_word_that_is_free() -> None:
    before = manifest("2", "", "2", "", "", "")
    assert words_of(grown(before, (1, 4))) == ["2", "3", "2", "", "3", ""]
    assert words_of(grown(before, (1, 4), (3, 5))) == ["2", "3", "2", "4", "3", "4"]
    assert words_of(grown(manifest("", "", ""), (0, 2))) == ["1", "", "1"]


def test_a_group_grows_and_two_become_one() -> None:
    before = manifest("1", "1", "2", "", "2", "")
    assert words_of(grown(before, (1, 3))) == ["1", "1", "2", "1", "2", ""]
    assert words_of(grown(before, (1, 4))) == ["1", "1", "1", "", "1", ""]
    assert words_of(grown(before, (1, 3), (3, 4))) == ["1", "1", "1", "1", "1", ""]


def test_what_is_known_changes_nothing() -> None:
    before = manifest("1", "1", "2", "1", "2", "")
    assert grown(before, (0, 3), (2, 4)) == before
    assert grown(before) == before


def test_all_else_of_a_sample_stays() -> None:
    before = manifest("", "", "")
    found = grown(before, (0, 1))
    assert [s.split for s in found.samples] == [TRAIN, VAL, TEST]
    assert {s.group for s in found.samples} == {"g"}
    assert (found.root, found.classes) == (before.root, before.classes)
