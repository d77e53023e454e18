"""Files, labels and class counts of a run's images as arrays, made once from its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune.data.manifest import Manifest
from finetune.evaluation.grouped_folds import encode_groups, merge_groups
from finetune.types import Sample, Split


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImages:
    """Images of one split, in manifest order.

    Attributes:
        paths: Absolute paths of the N files.
        labels: Class indices in [0, K), int64, shape (N,).
        groups: User-defined groups and duplicate groups, as ``group_samples`` returns them, (N,).
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def from_manifest(cls, manifest: Manifest, split: Split) -> Self:
        """Return the images of one split of a manifest."""
        samples = manifest.get_samples(split)
        labels = np.asarray(manifest.encode_labels(samples), np.int64)
        return cls(manifest.resolve_paths(samples), labels, group_samples(samples))


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images of a run by split.

    Attributes:
        root: Data folder, which identifies the data set in caches.
        classes: Class names in index order, K of them.
        train: Training images.
        val: Validation images.
        test: Test images; may be empty.
        class_counts: Training images of each class, shape (K,).
    """

    root: Path
    classes: tuple[str, ...]
    train: LabeledImages
    val: LabeledImages
    test: LabeledImages
    class_counts: tuple[int, ...]

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """Return the images of a manifest."""
        train, val, test = (LabeledImages.from_manifest(manifest, split) for split in Split)
        counts = tuple(manifest.count_per_class(Split.TRAIN))
        return cls(manifest.root, manifest.classes, train, val, test, counts)


def group_samples(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return groups of samples that share a user-defined group or a duplicate group, shape (N,).

    They have the form of ``encode_groups``: the first row of each sample's group.
    """
    return merge_groups(
        encode_groups([sample.group for sample in samples]),
        encode_groups([sample.duplicate_group for sample in samples]),
    )
