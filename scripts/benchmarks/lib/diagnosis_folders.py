"""Folders of images, good and faulty, whose runs the diagnosis is checked on."""

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path


def link_classes(root: Path, classes: Mapping[str, Sequence[Path]]) -> Path:
    """Link the files of each class, given by its path relative to the root."""
    for name, files in classes.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
    return root


def draw_files(folder: Path, count: int | None, *, seed: int = 0) -> list[Path]:
    """Draw files of a folder; all of them for a count of None."""
    files = sorted(folder.iterdir())
    return files if count is None else sorted(random.Random(seed).sample(files, count))


def build_subset(
    source: Path,
    root: Path,
    *,
    per_class: int | None,
    classes: Iterable[str] | None = None,
    seed: int = 0,
) -> Path:
    """Link images of the class folders of a source."""
    names = classes or sorted(folder.name for folder in source.iterdir())
    drawn = {name: draw_files(source / name, per_class, seed=seed) for name in names}
    return link_classes(root, drawn)


def build_split_subset(
    source: Path, root: Path, *, splits: Mapping[str, tuple[str, int | None]], seed: int = 0
) -> Path:
    """Link images of the splits of a source: a split to its folder and its images per class."""
    for split, (folder, count) in splits.items():
        build_subset(source / folder, root / split, per_class=count, seed=seed)
    return root


def shuffle_labels(root: Path, *, fraction: float, seed: int = 0) -> Path:
    """Move a fraction of the files to a random other class of their split."""
    generator = random.Random(seed)
    for split in _list_splits(root):
        folders = sorted(folder for folder in split.iterdir() if folder.is_dir())
        files = [(file, folder) for folder in folders for file in sorted(folder.iterdir())]
        for file, folder in generator.sample(files, round(fraction * len(files))):
            other = generator.choice([one for one in folders if one != folder])
            file.rename(other / f"moved_{file.name}")
    return root


def copy_into_validation(root: Path, *, fraction: float, seed: int = 0) -> Path:
    """Replace a fraction of the validation images by training images of the same class."""
    generator = random.Random(seed)
    for folder in sorted((root / "val").iterdir()):
        files = sorted(folder.iterdir())
        sources = sorted((root / "train" / folder.name).iterdir())
        for file in generator.sample(files, round(fraction * len(files))):
            file.unlink()
            source = sources.pop(generator.randrange(len(sources)))
            shutil.copyfile(source, folder / f"again_{source.name}")
    return root


def _list_splits(root: Path) -> list[Path]:
    splits = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    return splits or [root]


Builder = Callable[[Path], Path]


def list_good_folders(shared: Path) -> dict[str, Builder]:
    """Return a builder for each of five folders that nothing is wrong with."""
    trashnet, mnist = shared / "trashnet", shared / "mnist"
    return {
        "hymenoptera": lambda root: build_split_subset(
            shared / "hymenoptera", root, splits={"train": ("train", None), "val": ("val", None)}
        ),
        "trashnet": lambda root: build_subset(trashnet, root, per_class=100),
        "cardboard-glass": lambda root: build_subset(
            trashnet, root, per_class=120, classes=("cardboard", "glass")
        ),
        "digits": lambda root: build_split_subset(
            mnist, root, splits={"train": ("train", 60), "val": ("test", 30)}
        ),
        "metal-paper-plastic": lambda root: build_subset(
            trashnet, root, per_class=180, classes=("metal", "paper", "plastic")
        ),
    }


def list_faulty_folders(shared: Path) -> dict[str, Builder]:
    """Return a builder for each folder that something is wrong with."""
    good = list_good_folders(shared)

    def link_few_digits(root: Path) -> Path:
        splits = {"train": ("train", 30), "val": ("test", 30)}
        return build_split_subset(shared / "mnist", root, splits=splits)

    return {
        "digits-5%-shuffled": lambda root: shuffle_labels(link_few_digits(root), fraction=0.05),
        "cardboard-glass-5%-shuffled": lambda root: shuffle_labels(
            good["cardboard-glass"](root), fraction=0.05
        ),
        "digits-leaks": lambda root: copy_into_validation(link_few_digits(root), fraction=0.4),
        "hymenoptera-tiny-val": lambda root: build_split_subset(
            shared / "hymenoptera", root, splits={"train": ("train", None), "val": ("val", 6)}
        ),
        "trashnet-4-each": lambda root: build_split_subset_of_one(
            shared / "trashnet", root, num_train=4, num_val=30
        ),
    }


def build_split_subset_of_one(
    source: Path,
    root: Path,
    *,
    num_train: int,
    num_val: int,
    classes: Iterable[str] | None = None,
    seed: int = 0,
) -> Path:
    """Link images of class folders without splits as a training and a validation split."""
    for name in classes or sorted(folder.name for folder in source.iterdir()):
        folder = source / name
        files = draw_files(folder, num_train + num_val, seed=seed)
        random.Random(seed).shuffle(files)
        link_classes(root / "train", {folder.name: files[:num_train]})
        link_classes(root / "val", {folder.name: files[num_train:]})
    return root
