"""Numbers of the labels of multi-label images: per image, and of pairs that occur together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from finetune.types import Sample

MAX_PAIRS = 5
"""Number of the most frequent pairs of labels."""


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """Numbers of the labels of multi-label images.

    Attributes:
        num_images: Images by split ("all" without splits).
        num_unlabelled: Images without any label.
        labels_per_image: Mean number of labels of an image.
        pairs: The most frequent pairs of labels with their number of images.
    """

    num_images: Mapping[str, int]
    num_unlabelled: int
    labels_per_image: float
    pairs: tuple[tuple[str, str, int], ...]

    @classmethod
    def from_samples(
        cls, samples: Sequence[Sample], *, max_pairs: int = MAX_PAIRS
    ) -> "LabelStatistics | None":
        """Return the numbers of images; None for images of one class each.

        Args:
            samples: Images.
            max_pairs: Number of pairs.
        """
        if not any(sample.labels is not None for sample in samples):
            return None
        splits = Counter("all" if s.split is None else s.split.value for s in samples)
        pairs = Counter(pair for s in samples for pair in combinations(s.class_names, 2))
        frequent = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:max_pairs]
        return cls(
            num_images=dict(splits),
            num_unlabelled=sum(not sample.class_names for sample in samples),
            labels_per_image=sum(len(s.class_names) for s in samples) / len(samples),
            pairs=tuple((first, second, count) for (first, second), count in frequent),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": dict(self.num_images),
            "num_unlabelled": self.num_unlabelled,
            "labels_per_image": round(self.labels_per_image, 3),
            "frequent_pairs": [
                {"labels": [first, second], "num_images": count}
                for first, second, count in self.pairs
            ],
        }
