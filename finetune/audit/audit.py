"""What is worth knowing of a data set before anything trains on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.label_errors import find_label_errors
from finetune.audit.near_duplicates import BLANK_CONTRAST, DuplicateGroup
from finetune.types import RejectedFile, Sample, Split

_DARK_THRESHOLD, _BRIGHT_THRESHOLD = 0.2, 0.95
_BLUR_THRESHOLD = 0.15
"""The sharpest edges are wider than a 64th of the image: what a Gaussian blur of that leaves."""
_MEASURED_SIDE = 128
_TINY_SIDE, _TINY_FRACTION = 32, 0.25
_ODD_ASPECT, _ODD_ASPECT_FACTOR = 3.0, 2.5

UNDER_REPRESENTED_THRESHOLD = 20
"""Training images of a class below which its share of right answers is mostly chance."""

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class DuplicateSamples:
    """Images that show the same.

    Attributes:
        samples: Two or more.
        is_exact: Whether their files are the same to the byte.
    """

    samples: tuple[Sample, ...]
    is_exact: bool

    @property
    def conflicts(self) -> tuple[str, ...]:
        """What they stand on both sides of: "classes" (one of them is wrong), "splits" (a leak)."""
        labels = {sample.label for sample in self.samples}
        splits = {sample.split for sample in self.samples} - {None}
        sides = {"classes": len(labels) > 1, "splits": len(splits) > 1}
        return tuple(name for name, is_across in sides.items() if is_across)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": "exact" if self.is_exact else "near",
            "where": [f"across {name}" for name in self.conflicts] or ["inside a class"],
            "paths": [sample.path for sample in self.samples],
            "labels": [sample.label for sample in self.samples],
            "splits": [sample.split and sample.split.value for sample in self.samples],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "DuplicateSamples":
        """Return what ``to_json`` was made of.

        Raises:
            KeyError: Something is missing.
            ValueError: Something is no split, or missing for one of the images.
        """
        rows = zip(tree["paths"], tree["labels"], tree["splits"], strict=True)
        samples = (Sample(path, label, split and Split(split)) for path, label, split in rows)
        return cls(tuple(samples), tree["kind"] == "exact")


def sort_by_severity(groups: Sequence[DuplicateSamples]) -> list[DuplicateSamples]:
    """Return groups of copies, those across splits first, then those across classes."""
    return sorted(groups, key=lambda g: ("splits" not in g.conflicts, "classes" not in g.conflicts))


def duplicates_to_json(groups: Sequence[DuplicateSamples]) -> list[dict[str, Any]]:
    """Return groups as plain values, the most telling first, by the numbers of their pictures."""
    numbered = enumerate(sort_by_severity(groups), 1)
    return [{"group": number, **group.to_json()} for number, group in numbered]


@dataclass(frozen=True, slots=True)
class SuspiciousImage:
    """An image that may serve no training.

    Attributes:
        path: Of the image.
        kind: "blank", "dark", "bright", "blurred", "tiny" or "odd aspect".
        detail: What was measured, in words.
    """

    path: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class LabelErrorCandidate:
    """An image whose label is probably wrong.

    Attributes:
        path: Of the image.
        label: The class that it has.
        predicted_label: The class that it looks like.
        label_probability: Of the class that it has, by a head that had not seen it, in [0, 1].
        predicted_probability: Of the class that it looks like.
    """

    path: str
    label: str
    predicted_label: str
    label_probability: float
    predicted_probability: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "path": self.path,
            "label": self.label,
            "likely": self.predicted_label,
            "probability": round(self.label_probability, 4),
            "likely_probability": round(self.predicted_probability, 4),
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings.

    Attributes:
        num_images: That can be used.
        counts: By split ("all" without splits) and class.
        sizes: Quantiles 0, 25, 50, 75 and 100% of width, height, aspect ratio and bytes.
        modes: Images of each of Pillow's modes.
        unreadable: Files that cannot be used.
        duplicates: Groups of copies; None where they were not looked for.
        suspicious_images: Suspicious images.
        label_errors: Probably wrong labels, the most certain first; None where nothing could tell.
        advice: What to choose, and why.
        data: The folder or CSV, absolute; None where who reads it knows.
    """

    num_images: int
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, Sequence[float]]
    modes: Mapping[str, int]
    unreadable: tuple[RejectedFile, ...]
    duplicates: tuple[DuplicateSamples, ...] | None
    suspicious_images: tuple[SuspiciousImage, ...]
    label_errors: tuple[LabelErrorCandidate, ...] | None = None
    advice: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    data: str | None = None

    @property
    def training_counts(self) -> Mapping[str, int]:
        """Images of each class that train, or that may, or of the first split that there is."""
        named = (self.counts[name] for name in ("train", "all") if name in self.counts)
        return next(named, next(iter(self.counts.values())))

    @property
    def imbalance_ratio(self) -> float:
        """Images of the largest class over those of the smallest."""
        counts = self.training_counts.values()
        return max(counts) / max(1, min(counts))

    @property
    def under_represented_classes(self) -> list[str]:
        """Classes of fewer than 20 training images, the smallest first."""
        few = {
            name: count
            for name, count in self.training_counts.items()
            if count < UNDER_REPRESENTED_THRESHOLD
        }
        return sorted(few, key=lambda name: (few[name], name))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **({} if self.data is None else {"data": self.data}),
            "num_images": self.num_images,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "imbalance_ratio": round(self.imbalance_ratio, 2),
            "starved_classes": self.under_represented_classes,
            "sizes": {name: list(values) for name, values in self.sizes.items()},
            "modes": dict(self.modes),
            "unreadable": [{"path": e.path, "reason": e.reason} for e in self.unreadable],
            "copies": None if self.duplicates is None else duplicates_to_json(self.duplicates),
            "suspicious": [
                {"path": s.path, "kind": s.kind, "detail": s.detail} for s in self.suspicious_images
            ],
            "labels": None
            if self.label_errors is None
            else [one.to_json() for one in self.label_errors],
            "advice": [dict(one) for one in self.advice],
        }


def audit_images(
    samples: Sequence[Sample],
    fingerprints: FingerprintTable,
    duplicates: Sequence[DuplicateGroup] | None,
    unreadable: Sequence[RejectedFile],
    empty_classes: Sequence[tuple[str, Split | None]] = (),
) -> Audit:
    """Return what is found in images that were looked at.

    Args:
        samples: N images that can be used.
        fingerprints: At them.
        duplicates: Groups of their rows; None where they were not looked for.
        unreadable: Files that cannot be used.
        empty_classes: Class and split of those of which no image can be used; they are counted as 0.
    """
    present = {sample.split for sample in samples}
    splits = [split for split in (None, *Split) if split in present]
    counts = {}
    for split in splits:
        found = Counter(sample.label for sample in samples if sample.split is split)
        found.update({label: 0 for label, its in empty_classes if its is split})
        counts["all" if split is None else split.value] = dict(sorted(found.items()))
    modes = Counter(mode.decode() for mode in fingerprints.read_column("mode").tolist())
    return Audit(
        num_images=len(samples),
        counts=counts,
        sizes=_compute_size_quantiles(fingerprints),
        modes=dict(modes.most_common()),
        unreadable=tuple(unreadable),
        duplicates=None
        if duplicates is None
        else tuple(
            DuplicateSamples(tuple(samples[row] for row in group.rows), group.is_exact)
            for group in duplicates
        ),
        suspicious_images=tuple(_find_suspicious_images(samples, fingerprints)),
    )


def collect_label_errors(
    samples: Sequence[Sample], classes: Sequence[str], probabilities: NDArray[np.floating]
) -> tuple[LabelErrorCandidate, ...]:
    """Return the images whose label is in doubt, the most doubtful first.

    Args:
        samples: N images.
        classes: Names in index order.
        probabilities: By a classifier that has not seen them, shape (N, K).
    """
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[sample.label] for sample in samples], np.int64)
    rows, likely = find_label_errors(probabilities, labels)
    found = []
    for row, other in zip(rows.tolist(), likely.tolist(), strict=True):
        sample, beliefs = samples[row], probabilities[row]
        own = float(beliefs[index[sample.label]])
        found.append(
            LabelErrorCandidate(
                sample.path, sample.label, classes[other], own, float(beliefs[other])
            )
        )
    return tuple(found)


def _compute_size_quantiles(fingerprints: FingerprintTable) -> dict[str, list[float]]:
    width, height = (
        fingerprints.read_column("width").astype(float),
        fingerprints.read_column("height").astype(float),
    )
    measured = {
        "width": width,
        "height": height,
        "aspect_ratio": width / height,
        "bytes": fingerprints.read_column("num_bytes").astype(float),
    }
    return {
        name: [round(float(value), 3) for value in np.quantile(values, _QUANTILES)]
        for name, values in measured.items()
    }


def _find_suspicious_images(
    samples: Sequence[Sample], fingerprints: FingerprintTable
) -> list[SuspiciousImage]:
    width, height = (
        fingerprints.read_column("width").astype(float),
        fingerprints.read_column("height").astype(float),
    )
    dark, bright = fingerprints.read_column("dark"), fingerprints.read_column("bright")
    sharp, contrast = fingerprints.read_column("sharpness"), fingerprints.read_column("contrast")
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    # small ones were enlarged to be measured, which widens their edges
    enough = _BLUR_THRESHOLD * np.minimum(1, shorter / _MEASURED_SIDE)
    aspect = longer / shorter
    # what all images are is not suspicious
    long = max(_ODD_ASPECT, _ODD_ASPECT_FACTOR * float(np.median(aspect)))
    small = min(_TINY_SIDE, _TINY_FRACTION * float(np.median(shorter)))
    kinds: dict[str, tuple[NDArray[np.bool_], NDArray[Any], str]] = {
        "blank": (
            contrast < BLANK_CONTRAST,
            contrast,
            f"contrast {{:.3f}} (below {BLANK_CONTRAST})",
        ),
        "dark": (
            bright < _DARK_THRESHOLD,
            bright,
            f"95% darker than {{:.3f}} of white (below {_DARK_THRESHOLD})",
        ),
        "bright": (
            dark > _BRIGHT_THRESHOLD,
            dark,
            f"95% brighter than {{:.3f}} of white (above {_BRIGHT_THRESHOLD})",
        ),
        "blurred": (sharp < enough, sharp, "sharpness {:.3f} (below {:.3g})"),
        "tiny": (shorter < small, shorter, f"shorter side {{:.0f}} px (below {small:.4g})"),
        "odd aspect": (aspect > long, aspect, f"aspect ratio {{:.2f}} (above {long:.2f})"),
    }
    found: dict[int, list[SuspiciousImage]] = {}
    for kind, (are, values, form) in kinds.items():
        for row in np.flatnonzero(are).tolist():
            # of what its pixels show the first says the most: a blank image is dark or bright, too
            if row not in found or kind in ("tiny", "odd aspect"):
                detail = form.format(values[row], enough[row])
                found.setdefault(row, []).append(SuspiciousImage(samples[row].path, kind, detail))
    return [suspect for _, suspects in sorted(found.items()) for suspect in suspects]
