"""Which samples show the same, as they note it: by a word that the copies of a group share."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.audit.near_duplicates import DuplicateGroup
from finetune.audit.union_find import UnionFind
from finetune.data.manifest import Manifest
from finetune.types import Sample


def assign_duplicate_groups(
    samples: Sequence[Sample], groups: Sequence[DuplicateGroup]
) -> list[Sample]:
    """Return samples that say which of them show the same.

    Args:
        samples: N images.
        groups: Groups of their rows.
    """
    word_of = {row: str(number) for number, group in enumerate(groups, 1) for row in group.rows}
    return [
        replace(sample, duplicate_group=word_of.get(row, "")) for row, sample in enumerate(samples)
    ]


def collect_duplicate_groups(samples: Sequence[Sample]) -> list[DuplicateGroup]:
    """Return the groups of rows that samples say to show the same, not knowing of any if exact."""
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.duplicate_group:
            rows_of.setdefault(sample.duplicate_group, []).append(row)
    return [
        DuplicateGroup(tuple(rows), is_exact=False) for rows in rows_of.values() if len(rows) > 1
    ]


def add_duplicate_groups(manifest: Manifest, groups: Sequence[Sequence[Sample]]) -> Manifest:
    """Return a manifest that also notes these groups of its images, joined with those it knows.

    A group that is part of one that is known changes nothing.
    """
    row_of = {sample.path: row for row, sample in enumerate(manifest.samples)}
    joined = UnionFind()
    known = [copies.rows for copies in collect_duplicate_groups(manifest.samples)]
    for rows in (*known, *([row_of[sample.path] for sample in group] for group in groups)):
        for row in rows[1:]:
            joined.merge(rows[0], row)
    samples = list(manifest.samples)
    last = max(
        (int(s.duplicate_group) for s in samples if s.duplicate_group.isdecimal()), default=0
    )
    for rows in sorted(joined.list_groups()):
        words = {samples[row].duplicate_group for row in rows}
        if len(words) == 1 and "" not in words:
            continue
        if words == {""}:
            last += 1
            words = {str(last)}
        word = min(words - {""})
        for row in rows:
            samples[row] = replace(samples[row], duplicate_group=word)
    return replace(manifest, samples=tuple(samples))
