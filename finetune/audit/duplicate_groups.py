"""Which samples show the same, as they note it: by a word that the copies of a group share."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.audit.near_duplicates import Copies
from finetune.audit.union_find import Joined
from finetune.data.manifest import Manifest
from finetune.types import Sample


def with_copies(samples: Sequence[Sample], copies: Sequence[Copies]) -> list[Sample]:
    """Return samples that say which of them show the same.

    Args:
        samples: N images.
        copies: Groups of their rows.
    """
    word_of = {row: str(number) for number, group in enumerate(copies, 1) for row in group.rows}
    return [replace(sample, copies=word_of.get(row, "")) for row, sample in enumerate(samples)]


def noted_copies(samples: Sequence[Sample]) -> list[Copies]:
    """Return the groups of rows that samples say to show the same, not knowing of any if exact."""
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.copies:
            rows_of.setdefault(sample.copies, []).append(row)
    return [Copies(tuple(rows), exact=False) for rows in rows_of.values() if len(rows) > 1]


def with_further_copies(manifest: Manifest, groups: Sequence[Sequence[Sample]]) -> Manifest:
    """Return a manifest that also notes these groups of its images, joined with those it knows.

    A group that is part of one that is known changes nothing.
    """
    row_of = {sample.path: row for row, sample in enumerate(manifest.samples)}
    joined = Joined()
    known = [copies.rows for copies in noted_copies(manifest.samples)]
    for rows in (*known, *([row_of[sample.path] for sample in group] for group in groups)):
        for row in rows[1:]:
            joined.join(rows[0], row)
    samples = list(manifest.samples)
    last = max((int(s.copies) for s in samples if s.copies.isdecimal()), default=0)
    for rows in sorted(joined.groups()):
        words = {samples[row].copies for row in rows}
        if len(words) == 1 and "" not in words:
            continue
        if words == {""}:
            last += 1
            words = {str(last)}
        word = min(words - {""})
        for row in rows:
            samples[row] = replace(samples[row], copies=word)
    return replace(manifest, samples=tuple(samples))
