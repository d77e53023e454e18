"""Folders of images for the independent check of the diagnosis: no threshold was set on them."""

from collections.abc import Mapping
from pathlib import Path

from scripts.benchmarks.lib.diagnosis_folders import (
    Builder,
    build_split_subset,
    build_split_subset_of_one,
    build_subset,
    copy_into_validation,
    link_classes,
    shuffle_labels,
)


def list_check_folders(shared: Path) -> Mapping[str, Builder]:
    """Return a builder for each folder of the check: other draws, classes and counts."""
    trashnet, mnist = shared / "trashnet", shared / "mnist"

    def link_digits(root: Path, num_train: int, num_val: int, seed: int) -> Path:
        splits = {"train": ("train", num_train), "val": ("test", num_val)}
        return build_split_subset(mnist, root, splits=splits, seed=seed)

    def link_pair(root: Path, first: str, second: str, count: int) -> Path:
        return build_subset(trashnet, root, per_class=count, classes=(first, second), seed=7)

    return {
        "insects": lambda root: _join_splits(shared / "hymenoptera", root),
        "waste-draw-1": lambda root: build_subset(trashnet, root, per_class=110, seed=11),
        "waste-draw-2": lambda root: build_subset(trashnet, root, per_class=90, seed=12),
        "paper-plastic": lambda root: link_pair(root, "paper", "plastic", 200),
        "glass-metal": lambda root: link_pair(root, "glass", "metal", 200),
        "digits-100": lambda root: link_digits(root, 100, 40, 21),
        "digits-80": lambda root: link_digits(root, 80, 25, 22),
        "digits-50": lambda root: link_digits(root, 50, 40, 23),
        "paper-plastic-15%-shuffled": lambda root: shuffle_labels(
            link_pair(root, "paper", "plastic", 200), fraction=0.15, seed=31
        ),
        "digits-50-5%-shuffled": lambda root: shuffle_labels(
            link_digits(root, 50, 40, 23), fraction=0.05, seed=32
        ),
        "glass-metal-tiny-val": lambda root: build_split_subset_of_one(
            trashnet, root, num_train=120, num_val=8, classes=("glass", "metal"), seed=33
        ),
        "waste-leaks": lambda root: copy_into_validation(
            build_split_subset_of_one(trashnet, root, num_train=80, num_val=20, seed=34),
            fraction=0.3,
            seed=34,
        ),
    }


def _join_splits(source: Path, root: Path) -> Path:
    """Link all images of a folder with splits as one, which a run divides by its seed."""
    files: dict[str, list[Path]] = {}
    for folder in sorted(source.glob("*/*")):
        files.setdefault(folder.name, []).extend(sorted(folder.iterdir()))
    return link_classes(root, files)
