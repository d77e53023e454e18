"""Images that may be of no use for training: blank, dark, bright, blurred, tiny or very long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.near_duplicates import BLANK_CONTRAST
from finetune.types import Sample

_DARK_THRESHOLD, _BRIGHT_THRESHOLD = 0.2, 0.95
_BLUR_THRESHOLD = 0.15
"""Sharpness that a Gaussian blur of a 64th of the side leaves: the sharpest edges are wider."""
_MEASURED_SIDE = 128
_TINY_SIDE, _TINY_FRACTION = 32, 0.25
_EXTREME_ASPECT, _EXTREME_ASPECT_FACTOR = 3.0, 2.5
_EXTREME_ASPECT_KIND = "extreme aspect ratio"


@dataclass(frozen=True, slots=True)
class SuspiciousImage:
    """An image that may be of no use for training.

    Attributes:
        path: Path of the image.
        kind: "blank", "dark", "bright", "blurred", "tiny" or "extreme aspect ratio".
        detail: Measured value and threshold, as text.
    """

    path: str
    kind: str
    detail: str


def find_suspicious_images(
    samples: Sequence[Sample], fingerprints: FingerprintTable
) -> list[SuspiciousImage]:
    """Return suspicious images in the order of the samples, some with more than one kind."""
    width, height = read_sizes(fingerprints)
    dark, bright = fingerprints.read_column("dark"), fingerprints.read_column("bright")
    sharp, contrast = fingerprints.read_column("sharpness"), fingerprints.read_column("contrast")
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    # images below the measured side are enlarged, which widens their edges
    blur = _BLUR_THRESHOLD * np.minimum(1, shorter / _MEASURED_SIDE)
    aspect = longer / shorter
    # properties that most images share are not suspicious
    long = max(_EXTREME_ASPECT, _EXTREME_ASPECT_FACTOR * float(np.median(aspect)))
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
            f"95th percentile of brightness {{:.3f}} (below {_DARK_THRESHOLD})",
        ),
        "bright": (
            dark > _BRIGHT_THRESHOLD,
            dark,
            f"5th percentile of brightness {{:.3f}} (above {_BRIGHT_THRESHOLD})",
        ),
        "blurred": (sharp < blur, sharp, "sharpness {:.3f} (below {:.3g})"),
        "tiny": (shorter < small, shorter, f"shorter side {{:.0f}} px (below {small:.4g})"),
        _EXTREME_ASPECT_KIND: (
            aspect > long,
            aspect,
            f"aspect ratio {{:.2f}} (above {long:.2f})",
        ),
    }
    found: dict[int, list[SuspiciousImage]] = {}
    for kind, (is_suspicious, values, template) in kinds.items():
        for row in np.flatnonzero(is_suspicious).tolist():
            # a blank image is dark or bright, too: of the kinds of its pixels only the first counts
            if row not in found or kind in ("tiny", _EXTREME_ASPECT_KIND):
                detail = template.format(values[row], blur[row])
                found.setdefault(row, []).append(SuspiciousImage(samples[row].path, kind, detail))
    return [image for _, images in sorted(found.items()) for image in images]


def read_sizes(fingerprints: FingerprintTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the widths and heights of all images in pixels, shape (N,) each."""
    width, height = (fingerprints.read_column(name) for name in ("width", "height"))
    return width.astype(float), height.astype(float)
