"""Audits count images by split and class, and find suspicious images."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.audit.audit import Audit, audit_images, find_missing_classes
from finetune.audit.findings.duplicate_samples import DuplicateSamples
from finetune.audit.findings.suspicious_images import SuspiciousImage
from finetune.audit.fingerprint_table import fingerprint_files
from finetune.audit.label_errors import LabelErrorCandidate
from finetune.data.manifest import Manifest
from finetune.types import ReadOptions, RejectedFile, Reporter, Sample, Split
from tests.support.pictures import create_scene

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def audit_of(
    root: Path, images: dict[str, Image.Image], samples: list[Sample] | None = None
) -> Audit:
    """Return the audit of images by name, of class "x" unless samples are given."""
    for name, image in images.items():
        image.save(root / name)
    samples = [Sample(name, "x") for name in images] if samples is None else samples
    readable, table, rejected = fingerprint_files(
        root,
        samples,
        options=ReadOptions(max_pixels=10**8),
        stores_dir=None,
        limit_bytes=0,
        reporter=Reporter(),
    )
    return audit_images(readable, table, [], rejected)


def audit_counts(root: Path, *rows: tuple[str, Split | None, int]) -> Audit:
    """Return the audit of rows of class, split and number of images."""
    create_scene(1, width=40, height=40).save(root / "a.png")
    samples = []
    for label, split, count in rows:
        samples += [Sample("a.png", label, split)] * count
    return audit_of(root, {}, samples)


def test_audit_images_counts_by_split_and_class(tmp_path: Path) -> None:
    audit = audit_counts(
        tmp_path, ("b", TRAIN, 30), ("a", TRAIN, 60), ("c", TRAIN, 4), ("a", VAL, 5), ("b", TEST, 1)
    )
    assert audit.num_images == 100
    assert audit.class_counts == {
        "train": {"a": 60, "b": 30, "c": 4},
        "val": {"a": 5},
        "test": {"b": 1},
    }
    assert list(audit.class_counts) == ["train", "val", "test"]
    assert audit.training_counts == audit.class_counts["train"]
    assert audit.imbalance_ratio == 15
    assert audit.under_represented_classes == ["c"]


def test_audit_images_without_splits_counts_all(tmp_path: Path) -> None:
    audit = audit_counts(tmp_path, ("b", None, 19), ("a", None, 20), ("d", None, 3), ("c", None, 3))
    assert audit.class_counts == {"all": {"a": 20, "b": 19, "c": 3, "d": 3}}
    assert audit.under_represented_classes == ["c", "d", "b"]
    assert audit.imbalance_ratio == pytest.approx(20 / 3)


@pytest.mark.parametrize("split", [VAL, TEST])
def test_audit_images_without_training_split_counts_the_first(tmp_path: Path, split: Split) -> None:
    audit = audit_counts(tmp_path, ("a", split, 6), ("b", split, 2))
    assert audit.training_counts == {"a": 6, "b": 2}
    assert audit.imbalance_ratio == 3
    assert json.loads(json.dumps(audit.to_json()))["class_counts"] == {
        split.value: {"a": 6, "b": 2}
    }


def test_audit_images_with_and_without_splits_counts_separately(tmp_path: Path) -> None:
    audit = audit_counts(tmp_path, ("a", None, 6), ("b", None, 2), ("a", VAL, 3))
    assert audit.class_counts == {"all": {"a": 6, "b": 2}, "val": {"a": 3}}
    assert audit.training_counts == {"a": 6, "b": 2}


def test_audit_images_sizes_are_quantiles_and_modes_are_counted(tmp_path: Path) -> None:
    images = {
        f"{width}.png": create_scene(width, width=width, height=50).convert(
            "L" if width < 80 else "RGB"
        )
        for width in (60, 70, 80, 90, 100)
    }
    audit = audit_of(tmp_path, images)
    assert audit.size_quantiles["width"] == [60, 70, 80, 90, 100]
    assert audit.size_quantiles["height"] == [50] * 5
    assert audit.size_quantiles["aspect_ratio"] == [1.2, 1.4, 1.6, 1.8, 2.0]
    sizes = [(tmp_path / name).stat().st_size for name in images]
    assert audit.size_quantiles["num_bytes"] == pytest.approx(
        np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1])
    )
    assert audit.image_modes == {"RGB": 3, "L": 2}


def test_suspicious_images_each_kind_is_found_once(tmp_path: Path) -> None:
    usual = {f"usual {seed}.png": create_scene(seed) for seed in range(8)}
    dark = create_scene(20).point(lambda level: level // 8)
    bright = Image.new("L", (160, 120), 255)
    bright.paste(0, (70, 50, 90, 70))
    audit = audit_of(
        tmp_path,
        {
            **usual,
            "black.png": Image.new("RGB", (160, 120)),
            "white.png": Image.new("RGB", (160, 120), "white"),
            "dark.png": dark,
            "bright.png": bright,
            "blurred.png": create_scene(21).filter(ImageFilter.GaussianBlur(5)),
            "tiny.png": create_scene(22, width=24, height=20),
            "long.png": create_scene(23, width=800, height=100),
        },
    )
    assert {image.path: image.kind for image in audit.suspicious_images} == {
        "black.png": "blank",
        "white.png": "blank",
        "dark.png": "dark",
        "bright.png": "bright",
        "blurred.png": "blurred",
        "tiny.png": "tiny",
        "long.png": "extreme aspect ratio",
    }
    details = {image.kind: image.detail for image in audit.suspicious_images}
    assert details["tiny"] == "shorter side 20 px (below 30)"
    assert details["extreme aspect ratio"] == "aspect ratio 8.00 (above 3.33)"
    assert re.fullmatch(r"95th percentile .* 0\.[01]\d\d \(below 0\.2\)", details["dark"])
    brighter = r"5th percentile .* (0\.9|1\.0)\d\d? \(above 0\.95\)"
    assert re.fullmatch(brighter, details["bright"])
    assert re.fullmatch(r"contrast 0\.0\d\d \(below 0\.03\)", details["blank"])
    assert re.fullmatch(r"sharpness 0\.\d{3} \(below 0\.141\)", details["blurred"])


def test_suspicious_images_small_image_has_lower_blur_threshold(tmp_path: Path) -> None:
    blurred = create_scene(21, width=64, height=64).filter(ImageFilter.GaussianBlur(9))
    image = audit_of(tmp_path, {"small.png": blurred}).suspicious_images[0]
    assert image.kind == "blurred"
    assert image.detail.endswith("(below 0.075)")


def test_suspicious_images_tiny_image_may_have_extreme_aspect_ratio(tmp_path: Path) -> None:
    usual = {f"{seed}.png": create_scene(seed) for seed in range(6)}
    audit = audit_of(tmp_path, {**usual, "strip.png": create_scene(9, width=120, height=12)})
    kinds = [image.kind for image in audit.suspicious_images if image.path == "strip.png"]
    assert (len(kinds), kinds[-1]) == (2, "extreme aspect ratio")


def test_suspicious_images_common_properties_are_not_suspicious(tmp_path: Path) -> None:
    tiny = {f"{seed}.png": create_scene(seed, width=28, height=28) for seed in range(6)}
    assert audit_of(tmp_path, tiny).suspicious_images == ()
    long = {f"{seed}.png": create_scene(seed, width=500, height=100) for seed in range(6)}
    assert audit_of(tmp_path, long).suspicious_images == ()


@pytest.mark.parametrize(
    ("samples", "conflicts"),
    [
        ([Sample("a", "x"), Sample("b", "x")], ()),
        ([Sample("a", "x", TRAIN), Sample("b", "x", TRAIN)], ()),
        ([Sample("a", "x"), Sample("b", "y")], ("classes",)),
        ([Sample("a", "x", TRAIN), Sample("b", "x", VAL)], ("splits",)),
        ([Sample("a", "x", TRAIN), Sample("b", "y", TEST)], ("classes", "splits")),
    ],
)
def test_duplicate_samples_conflicts_and_json_round_trip(
    samples: list[Sample], conflicts: tuple[str, ...]
) -> None:
    group = DuplicateSamples(tuple(samples), is_exact=True)
    assert group.conflicts == conflicts
    tree = group.to_json()
    assert tree["kind"] == "exact"
    assert tree["conflicts"] == list(conflicts)
    assert tree["paths"] == ["a", "b"]
    assert tree["labels"] == [sample.label for sample in samples]
    assert tree["splits"] == [sample.split for sample in samples]
    assert DuplicateSamples.from_json(tree) == group


def test_audit_to_json_round_trip(tmp_path: Path) -> None:
    plain = audit_counts(tmp_path, ("a", TRAIN, 3), ("b", VAL, 2))
    full = Audit(
        plain.num_images,
        plain.class_counts,
        plain.size_quantiles,
        plain.image_modes,
        (RejectedFile("é.jpg", "truncated"),),
        (DuplicateSamples((Sample("a", "x", TRAIN), Sample("b", "x", VAL)), is_exact=False),),
        (SuspiciousImage("c", "dark", "95%"),),
        (LabelErrorCandidate("d", "x", "y", 0.123456, 0.8),),
        ({"option": "--batch-size", "value": 32, "reason": "few"},),
    )
    for audit in (plain, full):
        tree = audit.to_json()
        assert json.loads(json.dumps(tree)) == tree
        assert tree["version"] == 2
    assert tree["duplicates"][0]["kind"] == "near"
    assert tree["label_errors"] == [
        {
            "path": "d", "label": "x", "label_probability": 0.1235, "predicted_label": "y",
            "predicted_probability": 0.8,
        }
    ]  # fmt: skip
    assert plain.to_json()["label_errors"] is None


def test_find_missing_classes_ignores_empty_splits() -> None:
    samples = (Sample("1", "a", TRAIN), Sample("2", "b", TRAIN), Sample("3", "b", VAL))
    assert find_missing_classes(Manifest(Path("/data"), ("a", "b"), samples)) == {VAL: ["a"]}
    assert find_missing_classes(Manifest(Path("/data"), ("a", "b"), samples[:2])) == {}
