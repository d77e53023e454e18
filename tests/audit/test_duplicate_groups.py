"""Samples record their duplicate groups, and groups can be added."""

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


def manifest(*ids: str) -> Manifest:
    splits = (TRAIN, VAL, TEST)
    samples = (Sample(str(n), "x", splits[n % 3], "g", group_id) for n, group_id in enumerate(ids))
    return Manifest(Path("/photos"), ("x",), tuple(samples))


def ids_of(manifest: Manifest) -> list[str]:
    return [sample.duplicate_group for sample in manifest.samples]


def add(before: Manifest, *groups: tuple[int, ...]) -> Manifest:
    return add_duplicate_groups(before, [[before.samples[row] for row in rows] for rows in groups])


def test_assign_duplicate_groups_sets_ids() -> None:
    samples = [Sample(str(row), "x", TRAIN, "g") for row in range(5)]
    found = assign_duplicate_groups(
        samples, [DuplicateGroup((0, 3), is_exact=True), DuplicateGroup((1, 4), is_exact=False)]
    )
    assert [sample.duplicate_group for sample in found] == ["1", "2", "", "1", "2"]
    assert [Sample(s.path, s.label, s.split, s.group) for s in found] == samples
    assert assign_duplicate_groups(samples, []) == samples


def test_collect_duplicate_groups_ignores_single_images() -> None:
    samples = manifest("2", "", "7", "2", "9", "7").samples
    assert [group.rows for group in collect_duplicate_groups(samples)] == [(0, 3), (2, 5)]


def test_add_duplicate_groups_new_group_gets_a_free_id() -> None:
    before = manifest("2", "", "2", "", "", "")
    assert ids_of(add(before, (1, 4))) == ["2", "3", "2", "", "3", ""]
    assert ids_of(add(before, (1, 4), (3, 5))) == ["2", "3", "2", "4", "3", "4"]
    assert ids_of(add(manifest("", "", ""), (0, 2))) == ["1", "", "1"]


def test_add_duplicate_groups_overlapping_groups_are_merged() -> None:
    before = manifest("1", "1", "2", "", "2", "")
    assert ids_of(add(before, (1, 3))) == ["1", "1", "2", "1", "2", ""]
    assert ids_of(add(before, (1, 4))) == ["1", "1", "1", "", "1", ""]
    assert ids_of(add(before, (1, 3), (3, 4))) == ["1", "1", "1", "1", "1", ""]


def test_add_duplicate_groups_known_groups_change_nothing() -> None:
    before = manifest("1", "1", "2", "1", "2", "")
    assert add(before, (0, 3), (2, 4)) == before
    assert add(before) == before


def test_add_duplicate_groups_keeps_other_fields() -> None:
    before = manifest("", "", "")
    found = add(before, (0, 1))
    assert [s.split for s in found.samples] == [TRAIN, VAL, TEST]
    assert {s.group for s in found.samples} == {"g"}
    assert (found.root, found.classes) == (before.root, before.classes)
