"""Files, labels and class counts of a run's images as arrays, made once from its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune.data.manifest import Manifest
from finetune.data.multi_label.multi_hot import encode_multi_hot, find_rarest_labels
from finetune.data.stratified_sample import draw_stratified_sample
from finetune.evaluation.grouped_folds import encode_groups, merge_groups
from finetune.types import Sample, Split


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImages:
    """Images of one split, in manifest order.

    Attributes:
        paths: Absolute paths of the N files.
        labels: Class indices in [0, K), int64, shape (N,); of multi-label images the rarest label
            of each, by which folds are stratified.
        groups: User-defined groups and duplicate groups, as ``group_samples`` returns them, (N,).
        multi_hot: 1 for each label of multi-label images, float32, shape (N, K); None for images
            of one class.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    multi_hot: NDArray[np.float32] | None = None

    @property
    def targets(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """What the loss compares logits with: class indices (N,), or 1 for each label (N, K)."""
        return self.labels if self.multi_hot is None else self.multi_hot

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """Return the images of some rows, in their order."""
        indices = np.asarray(rows, np.int64)
        return replace(
            self,
            paths=[self.paths[row] for row in indices.tolist()],
            labels=self.labels[indices],
            groups=self.groups[indices],
            multi_hot=None if self.multi_hot is None else self.multi_hot[indices],
        )

    @classmethod
    def from_manifest(cls, manifest: Manifest, split: Split) -> Self:
        """Return the images of one split of a manifest."""
        samples = manifest.get_samples(split)
        paths, groups = manifest.resolve_paths(samples), group_samples(samples)
        if manifest.is_multi_label:
            multi_hot = encode_multi_hot(samples, manifest.classes)
            return cls(paths, find_rarest_labels(multi_hot), groups, multi_hot)
        return cls(paths, np.asarray(manifest.encode_labels(samples), np.int64), groups)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images of a run by split.

    Attributes:
        root: Data folder, which identifies the data set in caches.
        classes: Class names in index order, K of them.
        train: Training images.
        val: Validation images.
        test: Test images; may be empty.
        class_counts: Training images of each class or label, shape (K,).
    """

    root: Path
    classes: tuple[str, ...]
    train: LabeledImages
    val: LabeledImages
    test: LabeledImages
    class_counts: tuple[int, ...]

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.train.multi_hot is not None

    def sample_train_rows(self, *, seed: int) -> NDArray[np.int64]:
        """Return the rows of training images to compare with the validation images, ascending.

        They are a stratified sample, at most as many as there are validation images.

        Args:
            seed: Random seed; the sample is a pure function of it and the images.
        """
        return draw_stratified_sample(self.train.labels, num_images=len(self.val), seed=seed)

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
