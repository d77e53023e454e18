"""Duplicate groups as samples record them: by an identifier that the images of a group share."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.audit.alignment_filter import UnionFind
from finetune.audit.near_duplicates import DuplicateGroup
from finetune.data.manifest import Manifest
from finetune.types import Sample


def assign_duplicate_groups(
    samples: Sequence[Sample], groups: Sequence[DuplicateGroup]
) -> list[Sample]:
    """Return samples with the identifiers of their duplicate groups; "" for those in none.

    Args:
        samples: N images.
        groups: Groups of their rows.
    """
    id_of = {row: str(number) for number, group in enumerate(groups, 1) for row in group.rows}
    return [
        replace(sample, duplicate_group=id_of.get(row, "")) for row, sample in enumerate(samples)
    ]


def collect_duplicate_groups(samples: Sequence[Sample]) -> list[DuplicateGroup]:
    """Return the groups of rows that samples record, all as near-duplicates.

    Samples do not record whether the files of a group are byte-identical.
    """
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.duplicate_group:
            rows_of.setdefault(sample.duplicate_group, []).append(row)
    return [
        DuplicateGroup(tuple(rows), is_exact=False) for rows in rows_of.values() if len(rows) > 1
    ]


def add_duplicate_groups(manifest: Manifest, groups: Sequence[Sequence[Sample]]) -> Manifest:
    """Return a manifest that also records the given groups, merged with those that it records.

    A group that is a subset of a recorded one changes nothing.
    """
    row_of = {sample.path: row for row, sample in enumerate(manifest.samples)}
    union_find = UnionFind()
    known = [group.rows for group in collect_duplicate_groups(manifest.samples)]
    for rows in (*known, *([row_of[sample.path] for sample in group] for group in groups)):
        for row in rows[1:]:
            union_find.merge(rows[0], row)
    samples = list(manifest.samples)
    last_id = max(
        (int(s.duplicate_group) for s in samples if s.duplicate_group.isdecimal()), default=0
    )
    for rows in sorted(union_find.list_groups()):
        ids = {samples[row].duplicate_group for row in rows}
        if len(ids) == 1 and "" not in ids:
            continue
        if ids == {""}:
            last_id += 1
            ids = {str(last_id)}
        group_id = min(ids - {""})
        for row in rows:
            samples[row] = replace(samples[row], duplicate_group=group_id)
    return replace(manifest, samples=tuple(samples))
