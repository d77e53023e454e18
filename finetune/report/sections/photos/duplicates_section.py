"""Section with the groups of duplicates that the audit has found, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report.photos.photo_card import PhotoCard, build_card
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import name_split

NUM_GROUPS = 8
NUM_IMAGES = 4
"""Images of a group."""


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images of one motif.

    Attributes:
        title: What is wrong with the group, or its kind.
        is_problem: Whether it has images in several splits or classes.
        cards: First images of the group, those that conflict among them.
        num_hidden: Images that are not shown.
    """

    title: str
    is_problem: bool
    cards: tuple[PhotoCard, ...]
    num_hidden: int


@dataclass(frozen=True, slots=True)
class DuplicatesSection:
    """Groups of duplicates, the most severe first.

    Attributes:
        num_groups: Number of groups.
        num_leaks: Groups with images in several splits.
        num_conflicts: Groups with images of several classes.
        groups: First groups.
    """

    num_groups: int
    num_leaks: int
    num_conflicts: int
    groups: tuple[DuplicateGroup, ...]

    @property
    def cards(self) -> Iterator[PhotoCard]:
        """All cards, those of the first group first."""
        for group in self.groups:
            yield from group.cards


def build_duplicates(facts: RunFacts) -> DuplicatesSection | None:
    """Return the groups of duplicates; None where the audit has found none."""
    groups: Sequence[Mapping[str, Any]] = (facts.audit or {}).get("duplicates") or ()
    if not groups or facts.photos is None:
        return None
    ordered = sorted(groups, key=_rank)
    return DuplicatesSection(
        len(groups),
        sum("splits" in group["conflicts"] for group in groups),
        sum("classes" in group["conflicts"] for group in groups),
        tuple(_build_group(facts, group) for group in ordered[:NUM_GROUPS]),
    )


def _rank(group: Mapping[str, Any]) -> int:
    """Return 0 for the most severe groups: two labels in two splits, then leaks, then labels."""
    conflicts = group["conflicts"]
    return 3 - 2 * ("splits" in conflicts) - ("classes" in conflicts)


def _build_group(facts: RunFacts, group: Mapping[str, Any]) -> DuplicateGroup:
    splits = [str(split) if split else "" for split in group["splits"]]
    labels = [str(label) for label in group["labels"]]
    order = _sort_distinct_first(list(zip(splits, labels, strict=True)))
    cards = tuple(
        build_card(
            facts,
            str(group["paths"][row]),
            (
                ("class", labels[row]),
                *((("split", name_split(splits[row])),) if splits[row] else ()),
            ),
        )
        for row in order[:NUM_IMAGES]
    )
    kind = "Identical files" if group["kind"] == "exact" else "Near duplicates"
    remarks = [
        text
        for conflict, text in (("splits", "in several splits"), ("classes", "of several classes"))
        if conflict in group["conflicts"]
    ]
    title = f"{kind} {' and '.join(remarks)}" if remarks else kind
    return DuplicateGroup(title, bool(remarks), cards, len(order) - len(cards))


def _sort_distinct_first(keys: Sequence[tuple[str, str]]) -> list[int]:
    """Return the rows so that those of another split or class than all before come first."""
    first: dict[tuple[str, str], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    others = [row for row in range(len(keys)) if row not in first.values()]
    return [*first.values(), *others]
