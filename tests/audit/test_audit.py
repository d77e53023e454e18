"""An audit says what is in the images, split by split, and what is odd about them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.audit.audit import (
    Audit,
    DuplicateSamples,
    LabelErrorCandidate,
    SuspiciousImage,
    audit_images,
)
from finetune.audit.fingerprint_table import fingerprint_files
from finetune.types import RejectedFile, Reporter, Sample, Split
from tests.support.pictures import scene

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def audit_of(
    root: Path, images: dict[str, Image.Image], samples: list[Sample] | None = None
) -> Audit:
    """Return the audit of images by name, which are of class "x" unless samples are given."""
    for name, image in images.items():
        image.save(root / name)
    samples = [Sample(name, "x") for name in images] if samples is None else samples
    good, looks, bad = fingerprint_files(
        root,
        samples,
        max_pixels=10**8,
        stores_dir=None,
        limit_bytes=0,
        reporter=Reporter(),
    )
    return audit_images(good, looks, [], bad)


def counted(root: Path, *rows: tuple[str, Split | None, int]) -> Audit:
    """Return the audit of so many images of classes and splits."""
    scene(1, width=40, height=40).save(root / "a.png")
    samples = []
    for label, split, count in rows:
        samples += [Sample("a.png", label, split)] * count
    return audit_of(root, {}, samples)


def test_images_are_counted_by_split_and_class(tmp_path: Path) -> None:
    found = counted(
        tmp_path, ("b", TRAIN, 30), ("a", TRAIN, 60), ("c", TRAIN, 4), ("a", VAL, 5), ("b", TEST, 1)
    )
    assert found.num_images == 100
    assert found.counts == {"train": {"a": 60, "b": 30, "c": 4}, "val": {"a": 5}, "test": {"b": 1}}
    assert list(found.counts) == ["train", "val", "test"]
    assert found.training_counts == found.counts["train"]
    assert found.imbalance_ratio == 15
    assert found.under_represented_classes == ["c"]


def test_without_splits_all_are_counted(tmp_path: Path) -> None:
    found = counted(tmp_path, ("b", None, 19), ("a", None, 20), ("d", None, 3), ("c", None, 3))
    assert found.counts == {"all": {"a": 20, "b": 19, "c": 3, "d": 3}}
    assert found.under_represented_classes == ["c", "d", "b"]
    assert found.imbalance_ratio == pytest.approx(20 / 3)


@pytest.mark.parametrize("split", [VAL, TEST])
def test_images_without_a_training_split_are_counted(tmp_path: Path, split: Split) -> None:
    found = counted(tmp_path, ("a", split, 6), ("b", split, 2))
    assert found.training_counts == {"a": 6, "b": 2}
    assert found.imbalance_ratio == 3
    assert json.loads(json.dumps(found.to_json()))["counts"] == {split.value: {"a": 6, "b": 2}}


def test_images_with_and_without_a_split_are_counted_apart(tmp_path: Path) -> None:
    found = counted(tmp_path, ("a", None, 6), ("b", None, 2), ("a", VAL, 3))
    assert found.counts == {"all": {"a": 6, "b": 2}, "val": {"a": 3}}
    assert found.training_counts == {"a": 6, "b": 2}


def test_sizes_are_quantiles_and_modes_are_counted(tmp_path: Path) -> None:
    images = {
        f"{width}.png": scene(width, width=width, height=50).convert("L" if width < 80 else "RGB")
        for width in (60, 70, 80, 90, 100)
    }
    found = audit_of(tmp_path, images)
    assert found.sizes["width"] == [60, 70, 80, 90, 100]
    assert found.sizes["height"] == [50] * 5
    assert found.sizes["aspect_ratio"] == [1.2, 1.4, 1.6, 1.8, 2.0]
    sizes = [(tmp_path / name).stat().st_size for name in images]
    assert found.sizes["bytes"] == pytest.approx(np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]))
    assert found.modes == {"RGB": 3, "L": 2}


def test_each_kind_of_suspect_is_named_once(tmp_path: Path) -> None:
    usual = {f"usual {seed}.png": scene(seed) for seed in range(8)}
    dark = scene(20).point(lambda level: level // 8)
    bright = Image.new("L", (160, 120), 255)
    bright.paste(0, (70, 50, 90, 70))
    found = audit_of(
        tmp_path,
        {
            **usual,
            "black.png": Image.new("RGB", (160, 120)),
            "white.png": Image.new("RGB", (160, 120), "white"),
            "dark.png": dark,
            "bright.png": bright,
            "blurred.png": scene(21).filter(ImageFilter.GaussianBlur(5)),
            "tiny.png": scene(22, width=24, height=20),
            "long.png": scene(23, width=800, height=100),
        },
    )
    assert {suspect.path: suspect.kind for suspect in found.suspicious_images} == {
        "black.png": "blank",
        "white.png": "blank",
        "dark.png": "dark",
        "bright.png": "bright",
        "blurred.png": "blurred",
        "tiny.png": "tiny",
        "long.png": "odd aspect",
    }
    details = {suspect.kind: suspect.detail for suspect in found.suspicious_images}
    assert details["tiny"] == "shorter side 20 px (below 30)"
    assert details["odd aspect"] == "aspect ratio 8.00 (above 3.33)"
    assert re.fullmatch(r"95% darker than 0\.[01]\d\d of white \(below 0\.2\)", details["dark"])
    brighter = r"95% brighter than (0\.9|1\.0)\d\d? of white \(above 0\.95\)"
    assert re.fullmatch(brighter, details["bright"])
    assert re.fullmatch(r"contrast 0\.0\d\d \(below 0\.03\)", details["blank"])
    assert re.fullmatch(r"sharpness 0\.\d{3} \(below 0\.141\)", details["blurred"])


def test_a_small_image_is_sharp_with_less(tmp_path: Path) -> None:
    blurred = scene(21, width=64, height=64).filter(ImageFilter.GaussianBlur(9))
    suspect = audit_of(tmp_path, {"small.png": blurred}).suspicious_images[0]
    assert suspect.kind == "blurred"
    assert suspect.detail.endswith("(below 0.075)")


def test_an_image_may_be_tiny_and_of_odd_shape(tmp_path: Path) -> None:
    usual = {f"{seed}.png": scene(seed) for seed in range(6)}
    found = audit_of(tmp_path, {**usual, "strip.png": scene(9, width=120, height=12)})
    kinds = [suspect.kind for suspect in found.suspicious_images if suspect.path == "strip.png"]
    assert (len(kinds), kinds[-1]) == (2, "odd aspect")


def test_what_all_images_are_is_not_suspicious(tmp_path: Path) -> None:
    tiny = {f"{seed}.png": scene(seed, width=28, height=28) for seed in range(6)}
    assert audit_of(tmp_path, tiny).suspicious_images == ()
    long = {f"{seed}.png": scene(seed, width=500, height=100) for seed in range(6)}
    assert audit_of(tmp_path, long).suspicious_images == ()


@pytest.mark.parametrize(
    ("samples", "across"),
    [
        ([Sample("a", "x"), Sample("b", "x")], ()),
        ([Sample("a", "x", TRAIN), Sample("b", "x", TRAIN)], ()),
        ([Sample("a", "x"), Sample("b", "y")], ("classes",)),
        ([Sample("a", "x", TRAIN), Sample("b", "x", VAL)], ("splits",)),
        ([Sample("a", "x", TRAIN), Sample("b", "y", TEST)], ("classes", "splits")),
    ],
)
def test_a_group_says_what_it_is_across(samples: list[Sample], across: tuple[str, ...]) -> None:
    group = DuplicateSamples(tuple(samples), is_exact=True)
    assert group.conflicts == across
    tree = group.to_json()
    assert tree["kind"] == "exact"
    assert tree["where"] == ([f"across {name}" for name in across] or ["inside a class"])
    assert tree["paths"] == ["a", "b"]
    assert tree["labels"] == [sample.label for sample in samples]
    assert tree["splits"] == [sample.split for sample in samples]


def test_as_json_goes_through_json(tmp_path: Path) -> None:
    plain = counted(tmp_path, ("a", TRAIN, 3), ("b", VAL, 2))
    full = Audit(
        plain.num_images,
        plain.counts,
        plain.sizes,
        plain.modes,
        (RejectedFile("é.jpg", "truncated"),),
        (DuplicateSamples((Sample("a", "x", TRAIN), Sample("b", "x", VAL)), is_exact=False),),
        (SuspiciousImage("c", "dark", "95%"),),
        (LabelErrorCandidate("d", "x", "y", 0.123456, 0.8),),
        ({"option": "--batch-size", "value": 32, "reason": "few"},),
    )
    for found in (plain, full):
        tree = found.to_json()
        assert json.loads(json.dumps(tree)) == tree
    assert tree["copies"][0]["kind"] == "near"
    assert tree["labels"] == [
        {
            "path": "d", "label": "x", "likely": "y", "probability": 0.1235,
            "likely_probability": 0.8,
        }
    ]  # fmt: skip
    assert plain.to_json()["labels"] is None
