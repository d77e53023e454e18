"""Manifest of labelled images with their splits, which a run and its resume share."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.multi_label.iterative_split import split_multi_label
from finetune.data.multi_label.multi_hot import count_labels, encode_multi_hot
from finetune.data.split import explain_missing_split, find_drawn_splits, stratified_split
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Sample, Split
from finetune.units import format_count, format_csv

_DUPLICATE_GROUP_COLUMN = "duplicate_group"
"""Column of the duplicate groups in a run's manifest; "copies" in manifests of version 0.1."""

_LABELS_COLUMN = "labels"
"""Column of the label names of multi-label images in a run's manifest, as JSON."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Labelled images with their splits.

    Attributes:
        root: Folder that relative paths of the samples are relative to.
        classes: Class names in index order.
        samples: All images, each once and with a split.
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

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return any(sample.labels is not None for sample in self.samples)

    def encode_targets(self, samples: Sequence[Sample]) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return class indices of samples, int64, shape (N,), or 1 for each of their labels.

        Those of multi-label samples are float32, shape (N, K).
        """
        if any(sample.labels is not None for sample in samples):
            return encode_multi_hot(samples, self.classes)
        return np.asarray(self.encode_labels(samples), np.int64)

    def encode_labels(self, samples: Iterable[Sample]) -> list[int]:
        """Return class indices of samples, in [0, len(classes))."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[sample.label] for sample in samples]

    def count_per_class(self, split: Split) -> list[int]:
        """Return the number of images of each class in a split, in class order."""
        counts = count_labels(self.get_samples(split))
        return [counts[name] for name in self.classes]


def build_manifest(
    root: Path,
    samples: Sequence[Sample],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    min_images: int | None = None,
    allow_divided_groups: bool = False,
) -> Manifest:
    """Return the manifest of labelled images, with a validation split.

    Given splits are kept; a missing validation split is drawn from train. A test split is drawn
    only where none is given and ``test_fraction`` is above 0.

    Args:
        root: Folder that relative paths of the samples are relative to.
        samples: Labelled images, all with a split or all without.
        val_fraction: Fraction of the training images for validation, in [0, 1); 0 draws none, as
            folds of a cross-validation take its place.
        test_fraction: Fraction of the training images for test, in [0, 1).
        seed: Random seed of the split.
        min_images: Minimum number of images per class; None requires one for each split.
        allow_divided_groups: Whether given splits may divide a group, which is then a leak.

    Raises:
        DataError: There are fewer than two classes, a class of val or test is not in train, some
            images have a split and others do not, a group is in two given splits, or a class is too
            small to split.
    """
    given = {sample.split for sample in samples}
    if None in given and len(given) > 1:
        row = next(sample for sample in samples if sample.split is None)
        raise DataError(
            f"{row.path} has no split, but other images have one. Fill the split column for all "
            f"images, or remove it."
        )
    if given - {None} and Split.TRAIN not in given:
        raise DataError(f"{root} has no train split. Name a folder or split 'train'.")
    pool = [s for s in samples if s.split in (None, Split.TRAIN)]
    held_out = [s for s in samples if s.split in (Split.VAL, Split.TEST)]
    classes = tuple(sorted(count_labels(pool)))
    is_multi_label = any(sample.labels is not None for sample in samples)
    _check_classes(root, classes, held_out, is_multi_label=is_multi_label)
    drawn = find_drawn_splits(given)
    if drawn and is_multi_label:
        splits = split_multi_label(
            pool,
            val_fraction=val_fraction,
            test_fraction=test_fraction if Split.TEST in drawn else 0.0,
            seed=seed,
            min_images=min_images,
        )
    elif drawn:
        splits = stratified_split(
            [sample.label for sample in pool],
            val_fraction=val_fraction,
            test_fraction=test_fraction if Split.TEST in drawn else 0.0,
            seed=seed,
            groups=[sample.group for sample in pool],
            duplicate_groups=[sample.duplicate_group for sample in pool],
            min_images=min_images,
        )
    if drawn:
        pool = [replace(sample, split=split) for sample, split in zip(pool, splits, strict=True)]
    manifest = Manifest(root, classes, (*pool, *held_out))
    if not allow_divided_groups:
        _check_groups(manifest)
    for split in (Split.TRAIN, Split.VAL) if val_fraction else (Split.TRAIN,):
        if not manifest.get_samples(split):
            why = explain_missing_split(
                [sample.label for sample in pool], [sample.duplicate_group for sample in pool]
            )
            if why and split in drawn:
                raise DataError(f"No image of {root} can be held out for {split.value}: {why}")
            raise DataError(f"{root} has no readable image in its {split.value} split. Add images.")
    return manifest


def _check_groups(manifest: Manifest) -> None:
    """Raise DataError if given splits divide a group."""
    split_of: dict[str, Sample] = {}
    for sample in manifest.samples:
        first = split_of.setdefault(sample.group, sample) if sample.group else sample
        if first.split is not sample.split:
            raise DataError(
                f"Group '{sample.group}' is in {first.split} ({first.path}) and in {sample.split} "
                f"({sample.path}). Keep it in one split, or clear the group column of these images."
            )


def check_labels(
    samples: Sequence[Sample], classes: Sequence[str], *, source: Path | None = None
) -> None:
    """Check that the model knows the class of every sample.

    Args:
        samples: Labelled images.
        classes: Classes of the model.
        source: Folder or table that gives the labels, for the message.

    Raises:
        DataError: The unknown classes, with the most similar known one.
    """
    unknown = sorted(set(count_labels(samples)) - set(classes))
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:5])
        remedy = "Rename or remove the folder."
        first = next(sample for sample in samples if unknown[0] in sample.class_names)
        if first.labels is not None or (source is not None and source.is_file()):
            table = "the table" if source is None else source.name
            remedy = f"Correct the label of {first.path} in {table}, or remove its row."
        noun = "class" if first.labels is None else "label"
        raise DataError(
            f"Unknown {noun} {shown}: the model was trained on "
            f"{format_count(len(classes), noun)}."
            f"{suggest_name(unknown[0], classes)} {remedy}"
        )


def format_manifest(manifest: Manifest) -> str:
    """Return the manifest as CSV of path,label,split,group, the duplicate group and the digest."""
    columns = ["path", "label", "split", "group", _DUPLICATE_GROUP_COLUMN, "digest"]
    is_multi_label = manifest.is_multi_label
    rows = (
        [
            sample.path,
            sample.label,
            sample.split,
            sample.group,
            sample.duplicate_group,
            sample.digest,
            *([json.dumps(sample.labels, ensure_ascii=False)] if is_multi_label else []),
        ]
        for sample in manifest.samples
    )
    return format_csv([*columns, *([_LABELS_COLUMN] if is_multi_label else [])], rows)


def format_rejected(rejected: Iterable[RejectedFile]) -> str:
    """Return the rejected files as CSV of path,reason."""
    return format_csv(["path", "reason"], ((entry.path, entry.reason) for entry in rejected))


def read_manifest(file: Path, *, root: Path) -> Manifest:
    """Return the manifest that a run wrote, with its classes in the same order.

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
                    # absent from the oldest manifests
                    row.get(_DUPLICATE_GROUP_COLUMN) or row.get("copies") or "",
                    row.get("digest") or "",
                    _parse_labels(row.get(_LABELS_COLUMN)),
                )
                for row in csv.DictReader(stream)
            )
        if not samples:
            raise ValueError("no images")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} is missing or damaged ({error}). The run cannot be resumed or evaluated on "
            f"its own split; start a new one."
        ) from error
    classes = tuple(sorted(count_labels(s for s in samples if s.split is Split.TRAIN)))
    return Manifest(root, classes, samples)


def _parse_labels(text: str | None) -> tuple[str, ...] | None:
    """Return the label names of a multi-label image; None for an image of one class.

    Raises:
        ValueError: The text is no list of names.
    """
    if text is None:
        return None
    names = json.loads(text)
    if not isinstance(names, list):
        raise ValueError(f"labels {text!r} are no list")
    return tuple(map(str, names))


def _check_classes(
    root: Path, classes: Sequence[str], held_out: Sequence[Sample], *, is_multi_label: bool
) -> None:
    if is_multi_label and not classes:
        raise DataError(f"No training image of {root} has a label. Label some of them.")
    if len(classes) < 2 and not is_multi_label:
        raise DataError(
            f"{root} contains one class, '{classes[0]}'; a classifier needs at least two. "
            f"Expected a folder for each class."
            if classes
            else f"{root} contains no readable training image. Add images."
        )
    for sample in held_out:
        for name in sample.class_names:
            if name in classes:
                continue
            assert sample.split is not None
            raise DataError(
                f"Class '{name}' is in the {sample.split.value} split ({sample.path}) but "
                f"not in train.{suggest_name(name, classes)} Add it to train, or remove it."
            )
