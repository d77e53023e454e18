"""Which image is which class in which split: the one list that a run and its resume share."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.split import stratified_split
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Sample, Split


@dataclass(frozen=True, slots=True)
class Manifest:
    """Labelled images with their splits.

    Attributes:
        root: What relative paths are relative to.
        classes: Class names in index order.
        samples: Every image once, each with a split.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def get_samples(self, split: Split) -> list[Sample]:
        """Return the samples of a split, in manifest order."""
        return [sample for sample in self.samples if sample.split is split]

    def resolve_paths(self, samples: Iterable[Sample]) -> list[Path]:
        """Return absolute paths of samples."""
        return [self.root / sample.path for sample in samples]

    def encode_labels(self, samples: Iterable[Sample]) -> list[int]:
        """Return class indices of samples, in [0, len(classes))."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[sample.label] for sample in samples]

    def count_per_class(self, split: Split) -> list[int]:
        """Return how many images of each class a split has, in class order."""
        counts = Counter(sample.label for sample in self.samples if sample.split is split)
        return [counts[name] for name in self.classes]


def build_manifest(
    root: Path,
    samples: Sequence[Sample],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    min_images: int | None = None,
) -> Manifest:
    """Return the manifest: given splits are kept, a missing validation split is drawn from train.

    Raises:
        DataError: Fewer than two classes, a class of val or test that train does not know, some
            images with a split and others without, or a class too small to split.
    """
    given = {sample.split for sample in samples}
    if None in given and len(given) > 1:
        row = next(sample for sample in samples if sample.split is None)
        raise DataError(
            f"{row.path} has no split, but other images have. Fill the split column everywhere, or "
            f"leave it out."
        )
    if given - {None} and Split.TRAIN not in given:
        raise DataError(f"{root} has no train split. Name one 'train'.")
    pool = [s for s in samples if s.split in (None, Split.TRAIN)]
    held_out = [s for s in samples if s.split in (Split.VAL, Split.TEST)]
    classes = tuple(sorted({sample.label for sample in pool}))
    _check_classes(root, classes, held_out)
    if Split.VAL not in given:
        splits = stratified_split(
            [sample.label for sample in pool],
            val_fraction=val_fraction,
            test_fraction=0.0 if Split.TEST in given else test_fraction,
            seed=seed,
            groups=[sample.group for sample in pool],
            duplicate_groups=[sample.duplicate_group for sample in pool],
            min_images=min_images,
        )
        pool = [replace(sample, split=split) for sample, split in zip(pool, splits, strict=True)]
    manifest = Manifest(root, classes, (*pool, *held_out))
    _check_groups(manifest)
    for split in (Split.TRAIN, Split.VAL):
        if not manifest.get_samples(split):
            raise DataError(f"{root} has no readable image in its {split.value} split. Add some.")
    return manifest


def _check_groups(manifest: Manifest) -> None:
    """Raise where given splits tear a group apart."""
    split_of: dict[str, Sample] = {}
    for sample in manifest.samples:
        first = split_of.setdefault(sample.group, sample) if sample.group else sample
        if first.split is not sample.split:
            raise DataError(
                f"Group '{sample.group}' is in {first.split} ({first.path}) and in {sample.split} "
                f"({sample.path}). Put it on one side, or clear its group."
            )


def check_labels(samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Raise unless every sample's class is one that the model knows.

    Raises:
        DataError: Names the unknown classes and the nearest known one.
    """
    unknown = sorted({sample.label for sample in samples} - set(classes))
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:5])
        raise DataError(
            f"Unknown class {shown}: the model was trained on {len(classes)} classes."
            f"{suggest_name(unknown[0], classes)} Rename or remove the folder."
        )


def format_manifest(manifest: Manifest) -> str:
    """Return the manifest as CSV of path,label,split,group,copies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", "group", "copies"])
    for sample in manifest.samples:
        writer.writerow(
            [sample.path, sample.label, sample.split, sample.group, sample.duplicate_group]
        )
    return text.getvalue()


def format_rejected(rejected: Iterable[RejectedFile]) -> str:
    """Return the files that were left out as CSV of path,reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows((entry.path, entry.reason) for entry in rejected)
    return text.getvalue()


def read_manifest(file: Path, *, root: Path) -> Manifest:
    """Return the manifest that a run wrote, its classes in the same order.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            samples = tuple(
                Sample(
                    row["path"],
                    row["label"],
                    Split(row["split"]),
                    row["group"],
                    row.get("copies") or "",  # earlier releases did not look for any
                )
                for row in csv.DictReader(stream)
            )
        if not samples:
            raise ValueError("it lists no image")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} is missing or damaged ({error}). The run cannot be resumed or evaluated on "
            f"its own split; start a new one."
        ) from error
    classes = tuple(sorted({s.label for s in samples if s.split is Split.TRAIN}))
    return Manifest(root, classes, samples)


def _check_classes(root: Path, classes: Sequence[str], held_out: Sequence[Sample]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{root} holds one class, '{classes[0]}'; a classifier needs at least two. Expected a "
            f"folder for each class."
            if classes
            else f"{root} holds no readable training image."
        )
    for sample in held_out:
        if sample.label not in classes:
            assert sample.split is not None
            raise DataError(
                f"Class '{sample.label}' is in the {sample.split.value} split ({sample.path}) but "
                f"not in train.{suggest_name(sample.label, classes)} Add it to train, or remove it."
            )
