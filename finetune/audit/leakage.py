"""Held-out images whose copies are seen before: which they are, and what may be done about them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.types import Rejected, Sample, Split

_HARDER = (Split.TRAIN, Split.VAL, Split.TEST)
"""What a split is seen by: training by itself, validation by the choice of the best epoch, too."""


def leaked(manifest: Manifest) -> dict[str, Sample]:
    """Return by path the copy of each held-out image that an easier split holds.

    Of a test image that is a training image, or a validation image if there is none such.
    """
    copies: dict[tuple[str, Split], Sample] = {}
    for sample in manifest.samples:
        if sample.copies and sample.split is not None:
            copies.setdefault((sample.copies, sample.split), sample)
    found = {}
    for sample in manifest.samples:
        if not sample.copies or sample.split is None:
            continue
        easier = _HARDER[: _HARDER.index(sample.split)]
        seen = (copies.get((sample.copies, split)) for split in easier)
        copy = next((other for other in seen if other is not None), None)
        if copy is not None:
            found[sample.path] = copy
    return found


def rows_without_leaks(manifest: Manifest, files: Sequence[Path]) -> list[int] | None:
    """Return which files a run has not seen before; None where all or none of them are not."""
    seen = {(manifest.root / path).resolve() for path in leaked(manifest)}
    rows = [row for row, file in enumerate(files) if file.resolve() not in seen]
    return rows if 0 < len(rows) < len(files) else None


def describe_leaks(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return how many held-out images have copies elsewhere, with an example."""
    parts = []
    for split in (Split.VAL, Split.TEST):
        held_out = manifest.of(split)
        count = sum(sample.path in leaks for sample in held_out)
        if count:
            parts.append(f"{count} of {len(held_out)} {split.value} images")
    path, copy = next(iter(leaks.items()))
    where = copy.split.value if copy.split is not None else ""
    return (
        f"{' and '.join(parts)} have copies that are seen before (as {path}: {copy.path}, {where})"
    )


def describe_rest(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return in which splits something is left to measure without leaks, and in which nothing."""
    seen: dict[bool, list[str]] = {True: [], False: []}
    for split in (Split.VAL, Split.TEST):
        leaky = [sample.path in leaks for sample in manifest.of(split)]
        if any(leaky):
            seen[all(leaky)].append(split.value)
    parts = []
    if seen[False]:
        where = f" in {' and '.join(seen[False])}" if seen[True] else ""
        parts.append(f"It is measured without them{where}, too")
    if seen[True]:
        parts.append(f"without them no {' and no '.join(seen[True])} image is left to measure")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def without_leaks(manifest: Manifest, policy: str) -> tuple[Manifest, list[Rejected]]:
    """Return a manifest in which no held-out image is seen before, and what it leaves out.

    Args:
        manifest: With splits.
        policy: "drop" leaves out the copies that are seen before, so that what is held out stays
            whole; "move" lets all copies train, and the groups that they are in.

    Raises:
        DataError: A split, or a class of the training images, would have none left.
    """
    if policy == "move":
        kept, rejected = _all_training(manifest), list[Rejected]()
    else:
        kept, rejected = _without_seen(manifest)
    _check_left(manifest, kept, policy)
    return kept, rejected


def _all_training(manifest: Manifest) -> Manifest:
    """Let copies that are seen before train, with their groups, and the copies of these."""
    while leaks := leaked(manifest):
        found = [sample for sample in manifest.samples if sample.path in leaks]
        copies = {sample.copies for sample in found}
        groups = {s.group for s in manifest.samples if s.copies in copies} - {""}
        samples = tuple(
            replace(sample, split=Split.TRAIN)
            if sample.copies in copies or sample.group in groups
            else sample
            for sample in manifest.samples
        )
        manifest = replace(manifest, samples=samples)
    return manifest


def _without_seen(manifest: Manifest) -> tuple[Manifest, list[Rejected]]:
    hardest: dict[str, Sample] = {}
    for sample in manifest.samples:
        if sample.copies and sample.split is not None:
            other = hardest.setdefault(sample.copies, sample)
            if other.split is not None and _HARDER.index(sample.split) > _HARDER.index(other.split):
                hardest[sample.copies] = sample
    kept, rejected = [], []
    for sample in manifest.samples:
        held_out = hardest.get(sample.copies, sample)
        if held_out.split is sample.split:
            kept.append(sample)
        else:
            reason = f"shows the same as {held_out.path}, which data.leaks=drop keeps"
            rejected.append(Rejected(sample.path, reason))
    return replace(manifest, samples=tuple(kept)), rejected


def _check_left(before: Manifest, after: Manifest, policy: str) -> None:
    def refuse(what: str) -> None:
        raise DataError(
            f"data.leaks={policy} would leave {what}: all of its images have copies in another "
            f"split. Mend the splits, or take data.leaks=warn."
        )

    for split in Split:
        if before.of(split) and not after.of(split):
            refuse(f"no {split.value} image")
    counts: Sequence[int] = after.class_counts(Split.TRAIN)
    for name, count in zip(after.classes, counts, strict=True):
        if not count:
            refuse(f"class '{name}' without a training image")
