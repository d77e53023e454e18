"""Held-out images that are seen before are found, left out, or moved; no split is lost silently."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.audit.leakage import describe_leaks, find_leaks, resolve_leaks
from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.types import Sample, Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
Row = tuple[str, str, Split, str] | tuple[str, str, Split]

PLAIN: list[Row] = [
    (f"{split}/{label}{number}", label, split)
    for split in (TRAIN, VAL, TEST)
    for label in "ab"
    for number in range(2)
]
"""Two images of each class in each split, without copies."""


def manifest_of(rows: Sequence[Row], *, groups: dict[str, str] | None = None) -> Manifest:
    samples = tuple(
        Sample(path, label, split, (groups or {}).get(path, ""), *copies)
        for path, label, split, *copies in rows
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
def test_the_copy_of_an_easier_split_is_found(
    splits: list[Split], expected: dict[int, int]
) -> None:
    copies: list[Row] = [(f"c{i}", "a", split, "1") for i, split in enumerate(splits)]
    others: list[Row] = [("x", "a", TRAIN, "2"), ("y", "a", TRAIN, "2")]
    found = find_leaks(manifest_of([*PLAIN, *others, *copies]))
    assert {path: copy.path for path, copy in found.items()} == {
        f"c{row}": f"c{copy}" for row, copy in expected.items()
    }


def test_without_copies_nothing_leaks() -> None:
    assert find_leaks(manifest_of(PLAIN)) == {}


LEAKY: list[Row] = [
    *PLAIN,
    ("t1", "a", TRAIN, "1"), ("v1", "a", VAL, "1"), ("v1b", "a", VAL, "1"),
    ("v2", "b", VAL, "2"), ("e2", "b", TEST, "2"),
    ("t3", "a", TRAIN, "3"), ("e3", "b", TEST, "3"),
    ("t4", "a", TRAIN, "4"), ("v4", "a", VAL, "4"), ("e4", "a", TEST, "4"),
    ("t5", "a", TRAIN, "5"), ("t5b", "a", TRAIN, "5"),
]  # fmt: skip


def test_leaks_are_counted_by_split_with_an_example() -> None:
    manifest = manifest_of(LEAKY)
    assert describe_leaks(manifest, find_leaks(manifest)) == (
        "3 of 8 val images and 3 of 7 test images have copies that are seen before (as v1: t1, "
        "train)"
    )


def test_dropping_keeps_what_is_held_out_whole() -> None:
    manifest = manifest_of(LEAKY)
    kept, rejected = resolve_leaks(manifest, "drop")
    assert find_leaks(kept) == {}
    assert {entry.path: entry.reason.split(",")[0] for entry in rejected} == {
        "t1": "shows the same as v1",
        "v2": "shows the same as e2",
        "t3": "shows the same as e3",
        "t4": "shows the same as e4",
        "v4": "shows the same as e4",
    }
    assert paths_of(kept, TEST) == paths_of(manifest, TEST)
    left = {entry.path for entry in rejected}
    assert kept.samples == tuple(s for s in manifest.samples if s.path not in left)


def test_moving_leaves_nothing_out() -> None:
    manifest = manifest_of(LEAKY)
    moved, rejected = resolve_leaks(manifest, "move")
    assert rejected == []
    assert find_leaks(moved) == {}
    assert [s.path for s in moved.samples] == [s.path for s in manifest.samples]
    assert paths_of(moved, TRAIN) - paths_of(manifest, TRAIN) == {
        "v1", "v1b", "v2", "e2", "e3", "v4", "e4",
    }  # fmt: skip


def test_moving_takes_the_group_of_an_image_along() -> None:
    groups = {"v1": "g", "val/a0": "g", "v9": "h", "val/b0": "h", "e9": "i", "test/a0": "i"}
    rows: list[Row] = [
        *PLAIN, ("t1", "a", TRAIN, "1"), ("v1", "a", VAL, "1"),
        # that group's other image has a copy in the test, whose group follows, too
        ("v9", "a", VAL, "1"), ("e9", "a", TEST, "9"), ("v9b", "b", VAL, "9"),
    ]  # fmt: skip
    groups["v9b"] = "h"
    moved, _ = resolve_leaks(manifest_of(rows, groups=groups), "move")
    assert {"v1", "val/a0", "v9", "val/b0", "v9b", "e9", "test/a0"} < paths_of(moved, TRAIN)
    assert find_leaks(moved) == {}


@pytest.mark.parametrize("policy", ["drop", "move"])
def test_without_leaks_all_stays(policy: str) -> None:
    manifest = manifest_of([*PLAIN, ("x", "a", VAL, "1"), ("y", "a", VAL, "1")])
    assert resolve_leaks(manifest, policy) == (manifest, [])


def test_a_split_that_would_be_emptied_is_named() -> None:
    rows: list[Row] = [row for row in PLAIN if row[2] is TRAIN]
    rows += [("t", "a", TRAIN, "1"), ("v", "a", VAL, "1")]
    with pytest.raises(DataError, match=r"data\.leakage=move would leave no val image.*leaks=warn"):
        resolve_leaks(manifest_of(rows), "move")
    kept, rejected = resolve_leaks(manifest_of(rows), "drop")
    assert [entry.path for entry in rejected] == ["t"]
    assert paths_of(kept, VAL) == {"v"}


def test_a_class_that_would_no_longer_train_is_named() -> None:
    rows: list[Row] = [("t0", "a", TRAIN), ("v0", "a", VAL)]
    rows += [("t1", "b", TRAIN, "1"), ("v1", "b", VAL, "1")]
    with pytest.raises(
        DataError, match=r"data\.leakage=drop would leave class 'b' without a training image"
    ):
        resolve_leaks(manifest_of(rows), "drop")
    moved, _ = resolve_leaks(manifest_of(rows), "move")
    assert moved.count_per_class(VAL) == [1, 0]
