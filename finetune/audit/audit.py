"""Audit of a dataset before training: counts, sizes, duplicates and suspicious images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from finetune.audit.findings.duplicate_samples import DuplicateSamples, duplicates_to_json
from finetune.audit.findings.suspicious_images import (
    SuspiciousImage,
    find_suspicious_images,
    read_sizes,
)
from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.label_errors import LabelCheck, LabelErrorCandidate
from finetune.audit.near_duplicates import DuplicateGroup
from finetune.data.images.bit_depth import DatasetBits
from finetune.data.layouts.class_names import SimilarClasses, find_similar_classes
from finetune.data.layouts.name_groups import GroupSummary
from finetune.data.manifest import Manifest
from finetune.data.multi_label.label_statistics import LabelStatistics
from finetune.data.multi_label.multi_hot import count_labels
from finetune.types import RejectedFile, Sample, Split

AUDIT_VERSION = 2
"""Version of the keys of ``audit.json``; version 1 had none."""

UNDER_REPRESENTED_THRESHOLD = 20
"""Number of training images of a class below which its accuracy is mostly chance."""

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings of an audit.

    Attributes:
        num_images: Number of readable images.
        class_counts: Images by split ("all" without splits) and class.
        size_quantiles: Quantiles 0, 25, 50, 75 and 100% of width, height, aspect ratio and bytes.
        image_modes: Images by Pillow's mode.
        unreadable: Files that cannot be used.
        duplicates: Groups of duplicates; None if they were not searched.
        suspicious_images: Suspicious images.
        label_errors: Likely label errors, the most likely first; None if no backbone was used.
        advice: Recommended options with their values and reasons.
        data: Absolute path of the folder or CSV; None if the reader of the audit knows it.
        similar_classes: Classes whose names look alike.
        layout: Lines that say how the folder or CSV was read.
        bits: Bits of the values of 16-bit files that do not state them; None without such files.
        pixel_range: Value of ``data.pixel_range`` that they were read with.
        groups: Numbers of the user-defined groups; None without groups.
        labels: Numbers of the labels of multi-label images; None for images of one class.
        label_check: Accuracy of what the label errors follow from; None if it is unknown.
    """

    num_images: int
    class_counts: Mapping[str, Mapping[str, int]]
    size_quantiles: Mapping[str, Sequence[float]]
    image_modes: Mapping[str, int]
    unreadable: tuple[RejectedFile, ...]
    duplicates: tuple[DuplicateSamples, ...] | None
    suspicious_images: tuple[SuspiciousImage, ...]
    label_errors: tuple[LabelErrorCandidate, ...] | None = None
    advice: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    data: str | None = None
    similar_classes: tuple[SimilarClasses, ...] = ()
    layout: tuple[str, ...] = ()
    bits: DatasetBits | None = None
    pixel_range: str = "full"
    groups: GroupSummary | None = None
    labels: LabelStatistics | None = None
    label_check: LabelCheck | None = None

    @property
    def training_counts(self) -> Mapping[str, int]:
        """Class counts of the training split, else of images without a split, else of any split."""
        counts = self.class_counts
        named = (counts[name] for name in ("train", "all") if name in counts)
        return next(named, next(iter(counts.values())))

    @property
    def imbalance_ratio(self) -> float:
        """Number of images of the largest class divided by that of the smallest."""
        counts = self.training_counts.values()
        return max(counts) / max(1, min(counts))

    @property
    def under_represented_classes(self) -> list[str]:
        """Classes with fewer than 20 training images, the smallest first."""
        counts = self.training_counts
        names = [name for name, count in counts.items() if count < UNDER_REPRESENTED_THRESHOLD]
        return sorted(names, key=lambda name: (counts[name], name))

    def to_json(self) -> dict[str, Any]:
        """Return the audit as values of JSON."""
        return {
            "version": AUDIT_VERSION,
            **({} if self.data is None else {"data": self.data}),
            "layout": list(self.layout),
            "pixel_range": self.pixel_range,
            "sixteen_bit_files": None if self.bits is None else self.bits.to_json(),
            "num_images": self.num_images,
            "groups": None if self.groups is None else self.groups.to_json(),
            "class_counts": {split: dict(counts) for split, counts in self.class_counts.items()},
            "similar_classes": [classes.to_json() for classes in self.similar_classes],
            **({} if self.labels is None else {"multi_label": self.labels.to_json()}),
            "imbalance_ratio": round(self.imbalance_ratio, 2),
            "under_represented_classes": self.under_represented_classes,
            "size_quantiles": {name: list(values) for name, values in self.size_quantiles.items()},
            "image_modes": dict(self.image_modes),
            "unreadable": [
                {"path": rejected.path, "reason": rejected.reason} for rejected in self.unreadable
            ],
            "duplicates": None if self.duplicates is None else duplicates_to_json(self.duplicates),
            "suspicious_images": [asdict(image) for image in self.suspicious_images],
            "label_errors": None
            if self.label_errors is None
            else [candidate.to_json() for candidate in self.label_errors],
            "label_check": None if self.label_check is None else self.label_check.to_json(),
            "advice": [dict(option) for option in self.advice],
        }


def audit_images(
    samples: Sequence[Sample],
    fingerprints: FingerprintTable,
    duplicates: Sequence[DuplicateGroup] | None,
    unreadable: Sequence[RejectedFile],
    empty_classes: Sequence[tuple[str, Split | None]] = (),
) -> Audit:
    """Audit images by their fingerprints.

    Args:
        samples: N readable images.
        fingerprints: Their fingerprints.
        duplicates: Groups of their rows; None if they were not searched.
        unreadable: Files that cannot be used.
        empty_classes: Class and split of those without a readable image, which count 0.
    """
    present = {sample.split for sample in samples}
    splits = [split for split in (None, *Split) if split in present]
    class_counts = {}
    for split in splits:
        counts = count_labels(sample for sample in samples if sample.split is split)
        counts.update({label: 0 for label, other in empty_classes if other is split})
        class_counts["all" if split is None else split.value] = dict(sorted(counts.items()))
    modes = Counter(mode.decode() for mode in fingerprints.read_column("mode").tolist())
    return Audit(
        num_images=len(samples),
        class_counts=class_counts,
        size_quantiles=_compute_size_quantiles(fingerprints),
        image_modes=dict(modes.most_common()),
        unreadable=tuple(unreadable),
        duplicates=None
        if duplicates is None
        else tuple(
            DuplicateSamples(tuple(samples[row] for row in group.rows), group.is_exact)
            for group in duplicates
        ),
        suspicious_images=tuple(find_suspicious_images(samples, fingerprints)),
        similar_classes=tuple(find_similar_classes(samples)),
        labels=LabelStatistics.from_samples(samples),
        bits=DatasetBits.from_max_values(fingerprints.read_column("max_value")),
    )


def find_missing_classes(manifest: Manifest) -> dict[Split, list[str]]:
    """Return for each non-empty split the classes that it lacks, where there are any."""
    missing = {}
    for split in Split:
        counts = manifest.count_per_class(split)
        names = [name for name, n in zip(manifest.classes, counts, strict=True) if n == 0]
        if names and any(counts):
            missing[split] = names
    return missing


def _compute_size_quantiles(fingerprints: FingerprintTable) -> dict[str, list[float]]:
    width, height = read_sizes(fingerprints)
    columns = {
        "width": width,
        "height": height,
        "aspect_ratio": width / height,
        "num_bytes": fingerprints.read_column("num_bytes").astype(float),
    }
    return {
        name: [round(float(value), 3) for value in np.quantile(column, _QUANTILES)]
        for name, column in columns.items()
    }
