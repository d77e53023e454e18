"""What is worth knowing of a data set before anything trains on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.fingerprint_table import Looks
from finetune.audit.label_errors import doubtful_labels
from finetune.audit.near_duplicates import BLANK, Copies
from finetune.types import Rejected, Sample, Split

_DARK, _BRIGHT = 0.2, 0.95
_BLURRED = 0.15
"""The sharpest edges are wider than a 64th of the image: what a Gaussian blur of that leaves."""
_MEASURED_SIDE = 128
_TINY_SIDE, _TINY_SHARE = 32, 0.25
_ODD_ASPECT, _ODD_SHARE = 3.0, 2.5

STARVED = 20
"""Training images of a class below which its share of right answers is mostly chance."""

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class CopyGroup:
    """Images that show the same.

    Attributes:
        samples: Two or more.
        exact: Whether their files are the same to the byte.
    """

    samples: tuple[Sample, ...]
    exact: bool

    @property
    def across(self) -> tuple[str, ...]:
        """What they stand on both sides of: "classes" (one of them is wrong), "splits" (a leak)."""
        labels = {sample.label for sample in self.samples}
        splits = {sample.split for sample in self.samples} - {None}
        sides = {"classes": len(labels) > 1, "splits": len(splits) > 1}
        return tuple(name for name, is_across in sides.items() if is_across)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": "exact" if self.exact else "near",
            "where": [f"across {name}" for name in self.across] or ["inside a class"],
            "paths": [sample.path for sample in self.samples],
            "labels": [sample.label for sample in self.samples],
            "splits": [sample.split and sample.split.value for sample in self.samples],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "CopyGroup":
        """Return what ``as_json`` was made of.

        Raises:
            KeyError: Something is missing.
            ValueError: Something is no split, or missing for one of the images.
        """
        rows = zip(tree["paths"], tree["labels"], tree["splits"], strict=True)
        samples = (Sample(path, label, split and Split(split)) for path, label, split in rows)
        return cls(tuple(samples), tree["kind"] == "exact")


def telling_first(groups: Sequence[CopyGroup]) -> list[CopyGroup]:
    """Return groups of copies, those across splits first, then those across classes."""
    return sorted(groups, key=lambda g: ("splits" not in g.across, "classes" not in g.across))


def copies_as_json(groups: Sequence[CopyGroup]) -> list[dict[str, Any]]:
    """Return groups as plain values, the most telling first, by the numbers of their pictures."""
    numbered = enumerate(telling_first(groups), 1)
    return [{"group": number, **group.as_json()} for number, group in numbered]


@dataclass(frozen=True, slots=True)
class Suspect:
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
class LabelSuspect:
    """An image whose label is probably wrong.

    Attributes:
        path: Of the image.
        label: The class that it has.
        likely: The class that it looks like.
        probability: Of the class that it has, by a head that had not seen it, in [0, 1].
        likely_probability: Of the class that it looks like.
    """

    path: str
    label: str
    likely: str
    probability: float
    likely_probability: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "path": self.path,
            "label": self.label,
            "likely": self.likely,
            "probability": round(self.probability, 4),
            "likely_probability": round(self.likely_probability, 4),
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
        copies: Groups of copies; None where they were not looked for.
        suspects: Suspicious images.
        labels: Probably wrong labels, the most certain first; None where nothing could tell.
        advice: What to choose, and why.
        data: The folder or CSV, absolute; None where who reads it knows.
    """

    num_images: int
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, Sequence[float]]
    modes: Mapping[str, int]
    unreadable: tuple[Rejected, ...]
    copies: tuple[CopyGroup, ...] | None
    suspects: tuple[Suspect, ...]
    labels: tuple[LabelSuspect, ...] | None = None
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
    def starved(self) -> list[str]:
        """Classes of fewer than 20 training images, the smallest first."""
        few = {name: count for name, count in self.training_counts.items() if count < STARVED}
        return sorted(few, key=lambda name: (few[name], name))

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **({} if self.data is None else {"data": self.data}),
            "num_images": self.num_images,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "imbalance_ratio": round(self.imbalance_ratio, 2),
            "starved_classes": self.starved,
            "sizes": {name: list(values) for name, values in self.sizes.items()},
            "modes": dict(self.modes),
            "unreadable": [{"path": e.path, "reason": e.reason} for e in self.unreadable],
            "copies": None if self.copies is None else copies_as_json(self.copies),
            "suspicious": [
                {"path": s.path, "kind": s.kind, "detail": s.detail} for s in self.suspects
            ],
            "labels": None if self.labels is None else [one.as_json() for one in self.labels],
            "advice": [dict(one) for one in self.advice],
        }


def audit(
    samples: Sequence[Sample],
    looks: Looks,
    copies: Sequence[Copies] | None,
    unreadable: Sequence[Rejected],
    empty: Sequence[tuple[str, Split | None]] = (),
) -> Audit:
    """Return what is found in images that were looked at.

    Args:
        samples: N images that can be used.
        looks: At them.
        copies: Groups of their rows; None where they were not looked for.
        unreadable: Files that cannot be used.
        empty: Class and split of those of which no image can be used; they are counted as 0.
    """
    present = {sample.split for sample in samples}
    splits = [split for split in (None, *Split) if split in present]
    counts = {}
    for split in splits:
        found = Counter(sample.label for sample in samples if sample.split is split)
        found.update({label: 0 for label, its in empty if its is split})
        counts["all" if split is None else split.value] = dict(sorted(found.items()))
    modes = Counter(mode.decode() for mode in looks.column("mode").tolist())
    return Audit(
        num_images=len(samples),
        counts=counts,
        sizes=_sizes(looks),
        modes=dict(modes.most_common()),
        unreadable=tuple(unreadable),
        copies=None
        if copies is None
        else tuple(
            CopyGroup(tuple(samples[row] for row in group.rows), group.exact) for group in copies
        ),
        suspects=tuple(_suspects(samples, looks)),
    )


def label_suspects(
    samples: Sequence[Sample], classes: Sequence[str], probabilities: NDArray[np.floating]
) -> tuple[LabelSuspect, ...]:
    """Return the images whose label is in doubt, the most doubtful first.

    Args:
        samples: N images.
        classes: Names in index order.
        probabilities: By a classifier that has not seen them, shape (N, K).
    """
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[sample.label] for sample in samples], np.int64)
    rows, likely = doubtful_labels(probabilities, labels)
    found = []
    for row, other in zip(rows.tolist(), likely.tolist(), strict=True):
        sample, beliefs = samples[row], probabilities[row]
        own = float(beliefs[index[sample.label]])
        found.append(
            LabelSuspect(sample.path, sample.label, classes[other], own, float(beliefs[other]))
        )
    return tuple(found)


def _sizes(looks: Looks) -> dict[str, list[float]]:
    width, height = looks.column("width").astype(float), looks.column("height").astype(float)
    measured = {
        "width": width,
        "height": height,
        "aspect_ratio": width / height,
        "bytes": looks.column("num_bytes").astype(float),
    }
    return {
        name: [round(float(value), 3) for value in np.quantile(values, _QUANTILES)]
        for name, values in measured.items()
    }


def _suspects(samples: Sequence[Sample], looks: Looks) -> list[Suspect]:
    width, height = looks.column("width").astype(float), looks.column("height").astype(float)
    dark, bright = looks.column("dark"), looks.column("bright")
    sharp, contrast = looks.column("sharpness"), looks.column("contrast")
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    # small ones were enlarged to be measured, which widens their edges
    enough = _BLURRED * np.minimum(1, shorter / _MEASURED_SIDE)
    aspect = longer / shorter
    # what all images are is not suspicious
    long = max(_ODD_ASPECT, _ODD_SHARE * float(np.median(aspect)))
    small = min(_TINY_SIDE, _TINY_SHARE * float(np.median(shorter)))
    kinds: dict[str, tuple[NDArray[np.bool_], NDArray[Any], str]] = {
        "blank": (contrast < BLANK, contrast, f"contrast {{:.3f}} (below {BLANK})"),
        "dark": (bright < _DARK, bright, f"95% darker than {{:.3f}} of white (below {_DARK})"),
        "bright": (dark > _BRIGHT, dark, f"95% brighter than {{:.3f}} of white (above {_BRIGHT})"),
        "blurred": (sharp < enough, sharp, "sharpness {:.3f} (below {:.3g})"),
        "tiny": (shorter < small, shorter, f"shorter side {{:.0f}} px (below {small:.4g})"),
        "odd aspect": (aspect > long, aspect, f"aspect ratio {{:.2f}} (above {long:.2f})"),
    }
    found: dict[int, list[Suspect]] = {}
    for kind, (are, values, form) in kinds.items():
        for row in np.flatnonzero(are).tolist():
            # of what its pixels show the first says the most: a blank image is dark or bright, too
            if row not in found or kind in ("tiny", "odd aspect"):
                detail = form.format(values[row], enough[row])
                found.setdefault(row, []).append(Suspect(samples[row].path, kind, detail))
    return [suspect for _, suspects in sorted(found.items()) for suspect in suspects]
