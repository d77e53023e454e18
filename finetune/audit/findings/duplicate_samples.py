"""Groups of duplicate images with their labels and splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.types import Sample, Split


@dataclass(frozen=True, slots=True)
class DuplicateSamples:
    """A group of duplicate images with their labels and splits.

    Attributes:
        samples: Two or more samples.
        is_exact: Whether their files are byte-identical.
    """

    samples: tuple[Sample, ...]
    is_exact: bool

    @property
    def conflicts(self) -> tuple[str, ...]:
        """What differs within the group: "classes" (a wrong label), "splits" (leakage)."""
        labels = {sample.label for sample in self.samples}
        splits = {sample.split for sample in self.samples} - {None}
        differs = {"classes": len(labels) > 1, "splits": len(splits) > 1}
        return tuple(name for name, is_conflict in differs.items() if is_conflict)

    def to_json(self) -> dict[str, Any]:
        """Return the group as values of JSON."""
        return {
            "kind": "exact" if self.is_exact else "near",
            "conflicts": list(self.conflicts),
            "paths": [sample.path for sample in self.samples],
            "labels": [sample.label for sample in self.samples],
            "splits": [sample.split and sample.split.value for sample in self.samples],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "DuplicateSamples":
        """Return the group of which ``to_json`` returned the given values.

        Raises:
            KeyError: A key is missing.
            ValueError: A split is unknown, or the lists differ in length.
        """
        rows = zip(tree["paths"], tree["labels"], tree["splits"], strict=True)
        samples = (Sample(path, label, split and Split(split)) for path, label, split in rows)
        return cls(tuple(samples), tree["kind"] == "exact")


def sort_by_severity(groups: Sequence[DuplicateSamples]) -> list[DuplicateSamples]:
    """Return duplicate groups, those across splits first, then those across classes."""
    return sorted(groups, key=lambda g: ("splits" not in g.conflicts, "classes" not in g.conflicts))


def duplicates_to_json(groups: Sequence[DuplicateSamples]) -> list[dict[str, Any]]:
    """Return groups as values of JSON, by severity, with the numbers of their pictures."""
    numbered = enumerate(sort_by_severity(groups), 1)
    return [{"group": number, **group.to_json()} for number, group in numbered]
