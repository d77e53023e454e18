"""Groups of images by their names: frames of one video, tiles of one slide, photos of one patient.

The pattern is searched in the path of each image relative to the data folder, or from the class
folder on where the data have split folders; images for which it captures the same text are a group.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.errors import DataError
from finetune.types import Sample
from finetune.units import format_count, format_percent

_MAX_UNMATCHED_FRACTION = 0.1
"""Fraction of images without a match above which a warning is given."""


@dataclass(frozen=True, slots=True)
class NamedGroups:
    """Samples with the groups that a pattern finds in their names.

    Attributes:
        samples: Samples, in the same order.
        note: Line on images that did not match; "" without such.
        warning: What is probably wrong with the pattern; "" if nothing is.
    """

    samples: list[Sample]
    note: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Numbers of the user-defined groups of a dataset.

    Attributes:
        num_groups: Number of groups.
        largest: Number of images of the largest group.
        largest_name: Name of that group.
        num_ungrouped: Number of images without a group.
        source: Where groups come from: "data.group_by", or "the group column".
        num_divided: Number of groups with images in several given splits.
        divided_example: Paths of two images of such a group, the first in the earlier split.
    """

    num_groups: int
    largest: int
    largest_name: str
    num_ungrouped: int
    source: str
    num_divided: int = 0
    divided_example: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_groups": self.num_groups,
            "largest": self.largest,
            "largest_name": self.largest_name,
            "num_ungrouped": self.num_ungrouped,
            "source": self.source,
            "num_divided": self.num_divided,
            "divided_example": list(self.divided_example),
        }


def group_by_name(
    samples: Sequence[Sample], pattern: str, *, names: Mapping[str, str] | None = None
) -> NamedGroups:
    """Return the samples with the groups that a pattern finds in their names.

    The group is the text that the group named ``group`` captures, or else the first group of the
    pattern. An image for which it captures nothing has no group.

    Args:
        samples: Samples without groups.
        pattern: Regular expression with a group.
        names: Path of a sample to the name that is searched instead of it, where they differ.

    Raises:
        DataError: Images have groups already, or the pattern matches no image.
    """
    given = next((sample for sample in samples if sample.group), None)
    if given is not None:
        raise DataError(
            f"data.group_by cannot apply: the data have a column of groups ({given.path} is in "
            f"'{given.group}'). Leave data.group_by out, or remove the column."
        )
    expression = re.compile(pattern)
    names = names or {}
    groups = [_find_group(expression, names.get(sample.path, sample.path)) for sample in samples]
    unmatched = [sample for sample, group in zip(samples, groups, strict=True) if not group]
    if len(unmatched) == len(samples):
        first = samples[0].path
        raise DataError(
            f"data.group_by='{pattern}' finds no group in any of "
            f"{format_count(len(samples), 'path')} (such as {names.get(first, first)}). Correct "
            f"the pattern; it is searched in the path relative to the data folder, or from the "
            f"class folder on where there are split folders."
        )
    note = warning = ""
    num_groups = len(set(groups) - {""})
    if unmatched:
        verb = "is a group of its own" if len(unmatched) == 1 else "are groups of their own"
        images = format_count(len(samples), "image")
        text = (
            f"{len(unmatched):,} of {images} {verb}: data.group_by='{pattern}' finds no group in "
            f"their paths (such as {names.get(unmatched[0].path, unmatched[0].path)})"
        )
        if len(unmatched) > _MAX_UNMATCHED_FRACTION * len(samples):
            share = format_percent(len(unmatched) / len(samples))
            warning = f"{text}. These are {share}: check the pattern"
        else:
            note = f"{text}."
    if num_groups == len(samples) - len(unmatched):
        example = next(sample for sample, group in zip(samples, groups, strict=True) if group)
        warning = (
            f"data.group_by='{pattern}' gives every image a group of its own (such as "
            f"'{groups[samples.index(example)]}' of {example.path}), which keeps nothing together: "
            f"it captures too much of the name"
        )
    grouped = [replace(s, group=group) for s, group in zip(samples, groups, strict=True)]
    return NamedGroups(grouped, note, warning)


def name_below_parents(samples: Sequence[Sample], parents: Sequence[str]) -> dict[str, str]:
    """Return path of a sample to its path from the class folder on, as in ``cat/1.png``.

    A pattern finds the same groups in all splits then, and the same ones as without split folders.

    Args:
        samples: Samples.
        parents: Folders that hold the class folders, such as "train" and "val".
    """
    longest_first = sorted({f"{parent}/" for parent in parents}, key=len, reverse=True)
    return {
        sample.path: next(
            (sample.path[len(p) :] for p in longest_first if sample.path.startswith(p)),
            sample.path,
        )
        for sample in samples
    }


def describe_undivided_classes(samples: Sequence[Sample]) -> str:
    """Return which classes lie in one group each, which no split can divide; "" for none.

    Args:
        samples: Images; images of several labels are passed over.
    """
    groups_of: dict[str, set[str]] = {}
    num_images = Counter(sample.label for sample in samples if sample.labels is None)
    for sample in samples:
        groups_of.setdefault(sample.label, set()).add(sample.group)
    found = [
        name
        for name, count in sorted(num_images.items())
        if count > 1 and len(groups_of[name]) == 1 and "" not in groups_of[name]
    ]
    if not found:
        return ""
    shown = f"class '{found[0]}'"
    if len(found) > 1:
        shown = f"each of {format_count(len(found), 'class')} (such as '{found[0]}')"
    return (
        f"All images of {shown} are in one group ('{next(iter(groups_of[found[0]]))}'), which "
        f"cannot be on both sides of a split"
    )


def summarise_groups(samples: Sequence[Sample], group_by: str | None) -> GroupSummary | None:
    """Return the numbers of the groups of images; None without groups.

    Args:
        samples: Images.
        group_by: Value of ``data.group_by``.
    """
    sizes = Counter(sample.group for sample in samples)
    num_ungrouped = sizes.pop("", 0)
    if not sizes:
        return None
    name, largest = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    source = "the group column" if group_by is None else "data.group_by"
    first_of: dict[str, Sample] = {}
    divided: dict[str, tuple[str, str]] = {}
    for sample in samples:
        first = first_of.setdefault(sample.group, sample)
        if sample.group and sample.split is not first.split:
            divided.setdefault(sample.group, (first.path, sample.path))
    example = next(iter(divided.values()), ())
    return GroupSummary(len(sizes), largest, name, num_ungrouped, source, len(divided), example)


def describe_groups(tree: Mapping[str, Any]) -> str:
    """Return the numbers of the groups as text, as in ``312 groups by data.group_by, largest …``.

    Args:
        tree: Values of ``GroupSummary.to_json``.
    """
    text = (
        f"{format_count(tree['num_groups'], 'group')} by {tree['source']}, largest "
        f"{format_count(tree['largest'], 'image')} ({tree['largest_name']})"
    )
    if tree["num_ungrouped"]:
        text += f"; {format_count(tree['num_ungrouped'], 'image')} without a group"
    return text


def _find_group(expression: re.Pattern[str], name: str) -> str:
    """Return the text that a pattern captures in a name; "" without a match."""
    match = expression.search(name)
    if match is None:
        return ""
    return (match["group"] if "group" in expression.groupindex else match[1]) or ""
