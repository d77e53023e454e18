"""Tests of the manifest: classes, splits and its CSV."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.manifest import (
    Manifest,
    build_manifest,
    check_labels,
    format_manifest,
    format_rejected,
    read_manifest,
)
from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
ROOT = Path("/data")


def build(samples: list[Sample], *, test_fraction: float = 0.0, seed: int = 0) -> Manifest:
    return build_manifest(ROOT, samples, val_fraction=0.25, test_fraction=test_fraction, seed=seed)


def make_samples(label: str, count: int, split: Split | None = None) -> list[Sample]:
    return [Sample(f"{split}/{label}/{i}.png", label, split) for i in range(count)]


CATS_AND_DOGS = [*make_samples("cat", 3, TRAIN), *make_samples("dog", 3, TRAIN)]


def test_build_manifest_of_scan_contains_every_image_once(photos: Path) -> None:
    result = scan(photos)
    manifest = build_manifest(
        result.root, result.samples, val_fraction=0.25, test_fraction=0.25, seed=0
    )
    assert manifest.classes == ("cat", "dog")
    assert sorted(s.path for s in manifest.samples) == sorted(s.path for s in result.samples)
    by_split = {split: manifest.get_samples(split) for split in Split}
    assert sum(len(part) for part in by_split.values()) == 10
    for split, part in by_split.items():
        assert {s.split for s in part} == {split}
        assert manifest.count_per_class(split) == [
            sum(s.label == name for s in part) for name in ("cat", "dog")
        ]
        assert [manifest.classes[i] for i in manifest.encode_labels(part)] == [
            s.label for s in part
        ]
        assert all(path.is_file() for path in manifest.resolve_paths(part))


def test_build_manifest_given_splits_are_kept() -> None:
    samples = [
        *make_samples("b", 3, TRAIN),
        *make_samples("a", 2, TRAIN),
        *make_samples("a", 1, VAL),
        *make_samples("b", 1, TEST),
    ]
    manifest = build(samples, test_fraction=0.5)
    assert manifest.classes == ("a", "b")
    assert manifest.samples == tuple(samples)


def test_build_manifest_without_val_draws_it_from_train() -> None:
    samples = [
        *make_samples("a", 8, TRAIN),
        *make_samples("b", 8, TRAIN),
        *make_samples("a", 2, TEST),
    ]
    manifest = build(samples, test_fraction=0.5)
    assert manifest.get_samples(TEST) == make_samples("a", 2, TEST)
    assert manifest.count_per_class(VAL) == [2, 2]
    assert {s.path for s in manifest.get_samples(VAL)} < {
        s.path for s in samples if s.split is TRAIN
    }


def test_build_manifest_groups_stay_together() -> None:
    samples = [
        Sample(f"{label}{i}.png", label, None, f"g{i // 3}") for label in "ab" for i in range(12)
    ]
    manifest = build(samples)
    held_out = {s.group for s in manifest.get_samples(VAL)}
    assert held_out
    assert held_out.isdisjoint(s.group for s in manifest.get_samples(TRAIN))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            [*CATS_AND_DOGS, *make_samples("dgo", 1, VAL)],
            r"'dgo' .*val split \(val/dgo/0\.png\).*'dog'",
        ),
        ([*CATS_AND_DOGS, *make_samples("x", 1, TEST)], "'x' .*test split"),
        (make_samples("cat", 9), "/data .*one class, 'cat'"),
        ([], "/data .*no readable training image"),
        (
            [*make_samples("cat", 3, TRAIN), *make_samples("dog", 1)],
            r"None/dog/0\.png has no split",
        ),
        ([*make_samples("cat", 3, VAL), *make_samples("dog", 3, VAL)], "/data .*no train split"),
        (
            [*make_samples("cat", 3), *make_samples("dog", 1)],
            r"'dog' \(1\).*data\.min_images_per_class",
        ),
    ],
)
def test_build_manifest_unusable_labels_raise_data_error(
    samples: list[Sample], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build(samples)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["1", "2", "1", "2"], "for val: all of 4 images have copies in another class .'a', 'b'"),
        (["1", "1", "1", ""], "for val: 3 of 4 images have copies in another class"),
        (["1", "1", "2", "2"], "for val: all of 4 images are duplicates, which stay in one split"),
    ],
)
def test_build_manifest_duplicates_that_leave_no_val_split_are_explained(
    groups: list[str], message: str
) -> None:
    samples = [
        Sample(f"{label}{row}.png", label, duplicate_group=group)
        for row, (label, group) in enumerate(zip("aabb", groups, strict=True))
    ]
    with pytest.raises(DataError, match=message):
        build(samples)


def test_manifest_csv_roundtrip_keeps_every_field(tmp_path: Path) -> None:
    samples = (
        Sample('a, "b"/ü 🐈.png', "crème, brûlée", TRAIN, "g, 1"),
        Sample("line\nbreak.png", "猫", VAL),
        Sample("猫.png", "猫", TRAIN),
        Sample("/far/away.png", "猫", TEST, '"'),
    )
    manifest = Manifest(ROOT, ("crème, brûlée", "猫"), samples)
    file = tmp_path / "manifest.csv"
    file.write_text(format_manifest(manifest), encoding="utf-8", newline="")
    assert read_manifest(file, root=ROOT) == manifest
    assert manifest.resolve_paths(samples)[3] == Path("/far/away.png")


def test_format_rejected_gives_csv() -> None:
    rejected = [RejectedFile("a, b.png", 'not "an" image'), RejectedFile("ü.jpg", "truncated")]
    rows = list(csv.DictReader(io.StringIO(format_rejected(rejected))))
    assert rows == [{"path": entry.path, "reason": entry.reason} for entry in rejected]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,cat\n",
        "path,label,split,group\na.png,cat,trian,\n",
        "path,label,split,group\na.png,cat\n",
        'path,label,split,group\n"' + "x" * 200_000,
        "path,label,split,group\n",
        "",
        None,
    ],
)
def test_read_manifest_missing_or_damaged_raises_data_error(
    tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "manifest.csv"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.csv is missing or damaged"):
        read_manifest(file, root=ROOT)


def test_check_labels_unknown_class_raises_data_error_with_suggestion() -> None:
    check_labels(make_samples("cat", 2), ["cat", "dog"])
    with pytest.raises(DataError, match=r"'cta', 'emu': .*'cat'"):
        check_labels([*make_samples("emu", 2), *make_samples("cta", 1)], ["cat", "dog"])


def test_check_labels_names_what_gave_the_unknown_label(tmp_path: Path) -> None:
    table = tmp_path / "l.csv"
    table.touch()
    emus = make_samples("emu", 1)
    with pytest.raises(DataError, match=r"remove the folder\.$"):
        check_labels(emus, ["cat"], source=tmp_path)
    with pytest.raises(DataError, match=rf"label of {emus[0].path} in l\.csv, or remove its row"):
        check_labels(emus, ["cat"], source=table)
    several = [replace(emus[0], labels=("cat", "emu"))]
    with pytest.raises(DataError, match=r"Unknown label 'emu'.*in the table, or remove its row"):
        check_labels(several, ["cat"])


def test_build_manifest_duplicates_stay_together_and_survive_csv(tmp_path: Path) -> None:
    samples = [
        Sample(f"{label}{i}.png", label, duplicate_group=f"{label}{i // 3}")
        for label in "ab"
        for i in range(12)
    ]
    manifest = build(samples)
    held_out = {s.duplicate_group for s in manifest.get_samples(VAL)}
    assert held_out
    assert held_out.isdisjoint(s.duplicate_group for s in manifest.get_samples(TRAIN))
    file = tmp_path / "manifest.csv"
    file.write_text(format_manifest(manifest), encoding="utf-8", newline="")
    assert read_manifest(file, root=ROOT) == manifest


def test_read_manifest_without_duplicate_column_has_none(tmp_path: Path) -> None:
    file = tmp_path / "manifest.csv"
    file.write_text("path,label,split,group\na.png,x,train,g\nb.png,y,val,\n", encoding="utf-8")
    assert read_manifest(file, root=ROOT).samples == (
        Sample("a.png", "x", TRAIN, "g"),
        Sample("b.png", "y", VAL),
    )


def test_build_manifest_duplicate_in_given_test_split_does_not_affect_val() -> None:
    samples = [Sample(f"{label}{i}.png", label, TRAIN) for label in "ab" for i in range(8)]
    samples[0] = Sample("a0.png", "a", TRAIN, duplicate_group="1")
    samples.append(Sample("test.png", "a", TEST, duplicate_group="1"))
    manifest = build(samples)
    assert [s.path for s in manifest.get_samples(TEST)] == ["test.png"]
    assert manifest.count_per_class(VAL) == [2, 2]


@pytest.mark.parametrize("column", ["duplicate_group", "copies"])
def test_read_manifest_accepts_present_and_former_column_of_duplicates(
    tmp_path: Path, column: str
) -> None:
    file = tmp_path / "manifest.csv"
    file.write_text(f"path,label,split,group,{column}\na,x,train,g,1\nb,x,val,,\n", "utf-8")
    samples = read_manifest(file, root=tmp_path).samples
    assert [sample.duplicate_group for sample in samples] == ["1", ""]
    assert samples[0].group == "g"


def make_multi_label_samples(split: Split | None = None) -> list[Sample]:
    names = [("cat",), ("cat", "dog"), (), ("dog",), ("a|b", "cat")] * 4
    return [Sample(f"{i}.png", "|".join(n), split, labels=n) for i, n in enumerate(names)]


def test_build_manifest_of_multi_label_images_counts_and_encodes_each_label() -> None:
    manifest = build(make_multi_label_samples())
    assert manifest.is_multi_label
    assert manifest.classes == ("a|b", "cat", "dog")
    samples = manifest.get_samples(TRAIN)
    targets = manifest.encode_targets(samples)
    assert targets.dtype == np.float32
    assert targets.sum(axis=0).tolist() == manifest.count_per_class(TRAIN)
    assert [set(np.array(manifest.classes)[row > 0]) for row in targets] == [
        set(sample.class_names) for sample in samples
    ]
    totals = [manifest.count_per_class(split) for split in (TRAIN, VAL)]
    assert [train + val for train, val in zip(*totals, strict=True)] == [4, 12, 8]
    assert totals[1] == [1, 3, 2]


def test_manifest_of_multi_label_images_survives_its_csv(tmp_path: Path) -> None:
    manifest = build(make_multi_label_samples())
    file = tmp_path / "manifest.csv"
    file.write_text(format_manifest(manifest), encoding="utf-8")
    assert read_manifest(file, root=ROOT) == manifest


def test_manifest_of_one_class_images_has_no_column_of_labels() -> None:
    assert "labels" not in format_manifest(build(make_samples("a", 4) + make_samples("b", 4)))


def test_build_manifest_of_multi_label_images_needs_a_label_that_is_in_train() -> None:
    train = [Sample(f"{i}.png", "cat", TRAIN, labels=("cat",)) for i in range(3)]
    val = [Sample("v.png", "cow", VAL, labels=("cow",))]
    with pytest.raises(DataError, match="Class 'cow' is in the val split"):
        build([*train, *val])
    with pytest.raises(DataError, match=r"No training image of .* has a label"):
        build([Sample("a.png", "(no label)", labels=()), Sample("b.png", "(no label)", labels=())])
