"""Folders of links to the training and test images of a case, thinned by a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.lib.comparison.study import Case

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VAL_FRACTION = 0.2

Files = dict[str, list[Path]]  # class to files, sorted


@dataclass(frozen=True)
class DrawnImages:
    """Training and test images by class."""

    train: Files
    test: Files

    @property
    def imbalance_ratio(self) -> float:
        """Training images of the largest class divided by those of the smallest."""
        counts = [len(files) for files in self.train.values()]
        return max(counts) / min(counts)


def list_images(folder: Path) -> Files:
    """Return the images of each class folder, at any depth below it."""
    classes = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    files = {
        c.name: sorted(f for f in c.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        for c in classes
    }
    return {name: found for name, found in files.items() if found}


def draw_images(case: Case, *, seed: int) -> DrawnImages:
    """Return the images of a case.

    The test images do not depend on the seed. The training images are the first ones of a shuffle
    per class that depends on the seed, so that fewer images are a subset of more.

    Raises:
        SystemExit: If the folder has too few images or classes.
    """
    if not case.folder.is_dir():
        raise SystemExit(f"case {case.name}: there is no folder {case.folder}")
    train, test = _split(case)
    if len(train) < 2 or train.keys() != test.keys():
        raise SystemExit(
            f"case {case.name}: {case.folder} has the classes {sorted(train)} for training and "
            f"{sorted(test)} for the test; both need the same two or more"
        )
    shuffled = {name: _shuffle(files, f"train {seed} {name}") for name, files in train.items()}
    sizes = compute_class_sizes(
        {name: len(files) for name, files in train.items()},
        largest=case.train_per_class,
        ratio=case.ratio,
    )
    return DrawnImages(
        {name: sorted(files[: sizes[name]]) for name, files in shuffled.items()}, test
    )


def compute_class_sizes(
    available: Mapping[str, int], *, largest: int | None = None, ratio: float | None = None
) -> dict[str, int]:
    """Return the number of images of each class.

    Args:
        available: Number of images of each class.
        largest: Maximum size of a class; None: no maximum.
        ratio: Size of the largest class divided by that of the smallest, with an exponential
            profile in the order of the available images; None: as many as available.
    """
    if ratio is None:
        return {name: min(count, largest or count) for name, count in available.items()}
    names = sorted(available, key=lambda name: (-available[name], name))
    steps = max(1, len(names) - 1)
    factors = {name: ratio ** (-rank / steps) for rank, name in enumerate(names)}
    most = min(available[name] / factors[name] for name in names)
    top = min(most, largest or most)
    return {name: max(1, int(top * factors[name] + 1e-6)) for name in names}


def split_validation(files: Files, *, seed: int) -> tuple[Files, Files]:
    """Return training and validation images; at least one of each class is in validation."""
    shuffled = {name: _shuffle(found, f"val {seed} {name}") for name, found in files.items()}
    counts = {name: max(1, round(VAL_FRACTION * len(found))) for name, found in files.items()}
    return (
        {name: sorted(found[counts[name] :]) for name, found in shuffled.items()},
        {name: sorted(found[: counts[name]]) for name, found in shuffled.items()},
    )


def link_images(parts: Mapping[str, Files], folder: Path) -> None:
    """Create ``folder/<part>/<class>/<file>`` as links."""
    for part, classes in parts.items():
        for name, files in classes.items():
            (folder / part / name).mkdir(parents=True)
            for index, file in enumerate(files):
                (folder / part / name / f"{index:05d}-{file.name}").symlink_to(file.resolve())


def _split(case: Case) -> tuple[Files, Files]:
    """Return all training images, and the test images of a case."""
    parts = {p: list_images(case.folder / p) for p in ("train", "val", "test") if
             (case.folder / p).is_dir()}  # fmt: skip
    if "train" not in parts:
        return _split_flat(case)
    if len(parts) < 2:
        raise SystemExit(f"case {case.name}: {case.folder} has train, but neither test nor val")
    train, test = parts["train"], parts.get("test") or parts["val"]
    if len(parts) == 3:
        train = {name: sorted([*files, *parts["val"].get(name, [])]) for name, files in
                 train.items()}  # fmt: skip
    if case.test_per_class is not None:
        test = {
            name: sorted(_shuffle(f, f"test {name}")[: case.test_per_class])
            for name, f in test.items()
        }
    return train, test


def _split_flat(case: Case) -> tuple[Files, Files]:
    train: Files = {}
    test: Files = {}
    for name, files in list_images(case.folder).items():
        number = case.test_per_class or max(1, round(case.test_fraction * len(files)))
        if number + 2 > len(files):
            raise SystemExit(
                f"case {case.name}: class {name} has {len(files)} images, too few for {number} "
                f"test images; set a smaller test_per_class"
            )
        shuffled = _shuffle(files, f"test {name}")
        test[name], train[name] = sorted(shuffled[:number]), sorted(shuffled[number:])
    return train, test


def _shuffle(files: Sequence[Path], seed: str) -> list[Path]:
    shuffled = sorted(files)
    random.Random(seed).shuffle(shuffled)
    return shuffled
