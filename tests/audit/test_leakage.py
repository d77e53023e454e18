"""Leaked images are found, dropped or moved; no split is emptied silently."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.audit.leakage import (
    apply_leakage_policy,
    describe_leaks,
    describe_splits_without_leaks,
    find_leaks,
    find_rows_without_leaks,
    resolve_leaks,
)
from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.types import Sample, Split
from tests.support.helpers import RecordingReporter

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
Row = tuple[str, str, Split, str] | tuple[str, str, Split]

PLAIN: list[Row] = [
    (f"{split}/{label}{number}", label, split)
    for split in (TRAIN, VAL, TEST)
    for label in "ab"
    for number in range(2)
]
"""Two images of each class in each split, without duplicates."""


def manifest_of(rows: Sequence[Row], *, groups: dict[str, str] | None = None) -> Manifest:
    samples = tuple(
        Sample(path, label, split, (groups or {}).get(path, ""), "".join(duplicate_group))
        for path, label, split, *duplicate_group in rows
    )
    return Manifest(Path("/data"), ("a", "b"), samples)


def paths_of(manifest: Manifest, split: Split) -> set[str]:
    return {sample.path for sample in manifest.get_samples(split)}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([TRAIN, VAL], {1: 0}),
        ([VAL, TRAIN], {0: 1}),
        ([TRAIN, TEST], {1: 0}),
        ([VAL, TEST], {1: 0}),
        ([TEST, VAL, TRAIN], {0: 2, 1: 2}),
        ([VAL, TEST, TEST], {1: 0, 2: 0}),
        ([TRAIN, TRAIN, VAL, VAL], {2: 0, 3: 0}),
        ([TRAIN, TRAIN], {}),
        ([TEST, TEST], {}),
    ],
)
def test_find_leaks_returns_duplicate_of_an_earlier_split(
    splits: list[Split], expected: dict[int, int]
) -> None:
    duplicates: list[Row] = [(f"c{i}", "a", split, "1") for i, split in enumerate(splits)]
    others: list[Row] = [("x", "a", TRAIN, "2"), ("y", "a", TRAIN, "2")]
    leaks = find_leaks(manifest_of([*PLAIN, *others, *duplicates]))
    assert {path: other.path for path, other in leaks.items()} == {
        f"c{row}": f"c{other}" for row, other in expected.items()
    }


def test_find_leaks_without_duplicates_is_empty() -> None:
    assert find_leaks(manifest_of(PLAIN)) == {}


LEAKY: list[Row] = [
    *PLAIN,
    ("t1", "a", TRAIN, "1"), ("v1", "a", VAL, "1"), ("v1b", "a", VAL, "1"),
    ("v2", "b", VAL, "2"), ("e2", "b", TEST, "2"),
    ("t3", "a", TRAIN, "3"), ("e3", "b", TEST, "3"),
    ("t4", "a", TRAIN, "4"), ("v4", "a", VAL, "4"), ("e4", "a", TEST, "4"),
    ("t5", "a", TRAIN, "5"), ("t5b", "a", TRAIN, "5"),
]  # fmt: skip


def test_describe_leaks_counts_by_split_with_an_example() -> None:
    manifest = manifest_of(LEAKY)
    summary = describe_leaks(manifest, find_leaks(manifest))
    assert re.fullmatch(
        r"3 of 8 val images and 3 of 7 test images .* in train or val \(.*\bv1\b.*\bt1\)", summary
    )
    first = manifest_of([*PLAIN, ("t1", "a", TRAIN, "1"), ("v1", "a", VAL, "1")])
    assert re.match(r"1 of 5 val images .* in train \(", describe_leaks(first, find_leaks(first)))


@pytest.mark.parametrize(
    ("leaky", "pattern"),
    [
        ([VAL], r".* without them .*"),
        ([VAL, TEST], r".* for val; no test image .*"),
        ([TEST], r"No test image .*"),
    ],
)
def test_describe_splits_without_leaks_names_splits_that_leak_as_a_whole(
    leaky: list[Split], pattern: str
) -> None:
    rows: list[Row] = [row for row in PLAIN if row[2] is not TEST]
    rows += [("t", "a", TRAIN, "1"), *((f"{split}", "a", split, "1") for split in leaky)]
    manifest = manifest_of(rows)
    text = describe_splits_without_leaks(manifest, find_leaks(manifest))
    assert re.fullmatch(pattern, text)


def test_find_rows_without_leaks_returns_none_for_all_or_no_files() -> None:
    manifest = manifest_of(LEAKY)
    files = [Path("/data/v1"), Path("/data/val/a0"), Path("/data/v2"), Path("/other/v1")]
    assert find_rows_without_leaks(manifest, files) == [1, 2, 3]
    assert find_rows_without_leaks(manifest, files[:1]) is None
    assert find_rows_without_leaks(manifest, files[1:]) is None


@pytest.mark.parametrize(
    ("policy", "num_warnings", "num_notes"),
    [("ignore", 0, 0), ("warn", 1, 0), ("drop", 0, 1), ("move", 0, 1)],
)
def test_apply_leakage_policy_resolves_leaks_and_reports(
    policy: str, num_warnings: int, num_notes: int
) -> None:
    manifest, recorder = manifest_of(LEAKY), RecordingReporter()
    kept, dropped = apply_leakage_policy(manifest, policy, recorder)
    is_resolved = policy in ("drop", "move")
    assert (kept, dropped) == (resolve_leaks(manifest, policy) if is_resolved else (manifest, []))
    assert (len(recorder.warnings), len(recorder.notes)) == (num_warnings, num_notes)
    for message in (*recorder.warnings, *recorder.notes):
        assert describe_leaks(manifest, find_leaks(manifest)) in message
        assert "data.leakage=" in message
    assert apply_leakage_policy(manifest_of(PLAIN), policy, recorder) == (manifest_of(PLAIN), [])
    assert (len(recorder.warnings), len(recorder.notes)) == (num_warnings, num_notes)


def test_apply_leakage_policy_error_raises_data_error() -> None:
    with pytest.raises(DataError, match=r"data\.leakage=error: 3 of 8 val images"):
        apply_leakage_policy(manifest_of(LEAKY), "error", RecordingReporter())
    manifest = manifest_of(PLAIN)
    assert apply_leakage_policy(manifest, "error", RecordingReporter()) == (manifest, [])


def test_resolve_leaks_drop_keeps_the_held_out_splits() -> None:
    manifest = manifest_of(LEAKY)
    kept, rejected = resolve_leaks(manifest, "drop")
    assert find_leaks(kept) == {}
    kept_paths = {"t1": "v1", "v2": "e2", "t3": "e3", "t4": "e4", "v4": "e4"}
    assert [entry.path for entry in rejected] == list(kept_paths)
    for entry in rejected:
        assert entry.reason.startswith(f"duplicate of {kept_paths[entry.path]},")
        assert "data.leakage=drop" in entry.reason
    assert paths_of(kept, TEST) == paths_of(manifest, TEST)
    left = {entry.path for entry in rejected}
    assert kept.samples == tuple(s for s in manifest.samples if s.path not in left)


def test_resolve_leaks_move_keeps_all_images() -> None:
    manifest = manifest_of(LEAKY)
    moved, rejected = resolve_leaks(manifest, "move")
    assert rejected == []
    assert find_leaks(moved) == {}
    assert [s.path for s in moved.samples] == [s.path for s in manifest.samples]
    assert paths_of(moved, TRAIN) - paths_of(manifest, TRAIN) == {
        "v1", "v1b", "v2", "e2", "e3", "v4", "e4",
    }  # fmt: skip


def test_resolve_leaks_move_moves_groups_too() -> None:
    groups = {"v1": "g", "val/a0": "g", "v9": "h", "val/b0": "h", "e9": "i", "test/a0": "i"}
    rows: list[Row] = [
        *PLAIN, ("t1", "a", TRAIN, "1"), ("v1", "a", VAL, "1"),
        # the other image of that group has a duplicate in test, whose group follows
        ("v9", "a", VAL, "1"), ("e9", "a", TEST, "9"), ("v9b", "b", VAL, "9"),
    ]  # fmt: skip
    groups["v9b"] = "h"
    moved, _ = resolve_leaks(manifest_of(rows, groups=groups), "move")
    assert {"v1", "val/a0", "v9", "val/b0", "v9b", "e9", "test/a0"} < paths_of(moved, TRAIN)
    assert find_leaks(moved) == {}


@pytest.mark.parametrize("policy", ["drop", "move"])
def test_resolve_leaks_without_leaks_changes_nothing(policy: str) -> None:
    manifest = manifest_of([*PLAIN, ("x", "a", VAL, "1"), ("y", "a", VAL, "1")])
    assert resolve_leaks(manifest, policy) == (manifest, [])


def test_resolve_leaks_emptied_split_raises_data_error() -> None:
    rows: list[Row] = [row for row in PLAIN if row[2] is TRAIN]
    rows += [("t", "a", TRAIN, "1"), ("v", "a", VAL, "1")]
    with pytest.raises(DataError, match=r"data\.leakage=move .* no val image.*data\.leakage=warn"):
        resolve_leaks(manifest_of(rows), "move")
    kept, rejected = resolve_leaks(manifest_of(rows), "drop")
    assert [entry.path for entry in rejected] == ["t"]
    assert paths_of(kept, VAL) == {"v"}


def test_resolve_leaks_class_without_training_image_raises_data_error() -> None:
    rows: list[Row] = [("t0", "a", TRAIN), ("v0", "a", VAL)]
    rows += [("t1", "b", TRAIN, "1"), ("v1", "b", VAL, "1")]
    with pytest.raises(
        DataError, match=r"data\.leakage=drop .* class 'b' without a training image"
    ):
        resolve_leaks(manifest_of(rows), "drop")
    moved, _ = resolve_leaks(manifest_of(rows), "move")
    assert moved.count_per_class(VAL) == [1, 0]


GROUPS = {"train/a0": "v1", "val/a0": "v1", "train/b1": "v2", "test/b1": "v2", "train/a1": "v3"}


def test_groups_on_both_sides_of_a_given_split_leak() -> None:
    manifest = manifest_of(PLAIN, groups=GROUPS)
    leaks = find_leaks(manifest)
    assert {path: other.path for path, other in leaks.items()} == {
        "val/a0": "train/a0",
        "test/b1": "train/b1",
    }
    assert describe_leaks(manifest, leaks) == (
        "1 of 4 val images and 1 of 4 test images are in a group with images of train (such as "
        "val/a0, in the group 'v1' of train/a0)"
    )
    recorder = RecordingReporter()
    assert apply_leakage_policy(manifest, "warn", recorder) == (manifest, [])
    assert len(recorder.warnings) == 1
    with pytest.raises(DataError, match=r"data\.leakage=error: 1 of 4 val images"):
        apply_leakage_policy(manifest, "error", recorder)


def test_groups_and_duplicates_leak_together() -> None:
    rows: list[Row] = [*PLAIN, ("c0", "a", TRAIN, "1"), ("c1", "a", VAL, "1")]
    manifest = manifest_of(rows, groups=GROUPS)
    text = describe_leaks(manifest, find_leaks(manifest))
    assert text.startswith("2 of 5 val images and 1 of 4 test images are duplicates or in a group")


def test_resolve_leaks_drops_or_moves_groups() -> None:
    manifest = manifest_of(PLAIN, groups=GROUPS)
    dropped, rejected = resolve_leaks(manifest, "drop")
    assert [(entry.path, entry.reason) for entry in rejected] == [
        ("train/a0", "in the group 'v1' of val/a0, which data.leakage=drop keeps"),
        ("train/b1", "in the group 'v2' of test/b1, which data.leakage=drop keeps"),
    ]
    moved, _ = resolve_leaks(manifest, "move")
    assert paths_of(moved, TRAIN) - paths_of(manifest, TRAIN) == {"val/a0", "test/b1"}
    assert find_leaks(dropped) == find_leaks(moved) == {}
