"""Digits that ship with scikit-learn, as two image folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

IMAGE_SIZE = 32
TRAIN_COUNTS = {"five": 16, "six": 10, "seven": 7, "eight": 5, "nine": 4}
"""Training images per class of the second task: few and imbalanced."""

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_NUM_VAL = 15
_NUM_PRETRAIN_IMAGES = 100


def write_digits(folder: Path) -> None:
    """Write the digits of scikit-learn as two image folders: 0 to 4, and 5 to 9 with few images."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images_by_class: dict[str, list[Any]] = {name: [] for name in CLASS_NAMES}
    for row in order:
        images_by_class[CLASS_NAMES[digits.target[row]]].append(digits.images[row])
    for number, (name, images) in enumerate(images_by_class.items()):
        if number < 5:
            splits = {"train": images[:_NUM_PRETRAIN_IMAGES], "val": images[-_NUM_VAL:]}
            _write_class(folder / "digits-0-4", name, splits)
        else:
            num_train = TRAIN_COUNTS[name]
            splits = {
                "train": images[:num_train],
                "val": images[num_train : num_train + _NUM_VAL],
                "test": images[num_train + _NUM_VAL :],
            }
            _write_class(folder / "digits-5-9", name, splits)


def _write_class(root: Path, name: str, splits: Mapping[str, list[Any]]) -> None:
    for split, images in splits.items():
        target = root / split / name
        target.mkdir(parents=True)
        for number, image in enumerate(images):
            pixels = Image.fromarray((image * 255 / 16).astype(np.uint8))
            pixels.resize((IMAGE_SIZE, IMAGE_SIZE)).save(target / f"{number:03}.png")
