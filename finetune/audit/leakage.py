"""Held-out images whose copies are seen before: which they are, and what may be done about them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split

_SPLIT_ORDER = (Split.TRAIN, Split.VAL, Split.TEST)
"""What a split is seen by: training by itself, validation by the choice of the best epoch, too."""


def find_leaks(manifest: Manifest) -> dict[str, Sample]:
    """Return by path the copy of each held-out image that an easier split holds.

    Of a test image that is a training image, or a validation image if there is none such.
    """
    copies: dict[tuple[str, Split], Sample] = {}
    for sample in manifest.samples:
        if sample.duplicate_group and sample.split is not None:
            copies.setdefault((sample.duplicate_group, sample.split), sample)
    found = {}
    for sample in manifest.samples:
        if not sample.duplicate_group or sample.split is None:
            continue
        easier = _SPLIT_ORDER[: _SPLIT_ORDER.index(sample.split)]
        seen = (copies.get((sample.duplicate_group, split)) for split in easier)
        copy = next((other for other in seen if other is not None), None)
        if copy is not None:
            found[sample.path] = copy
    return found


def find_rows_without_leaks(manifest: Manifest, files: Sequence[Path]) -> list[int] | None:
    """Return which files a run has not seen before; None where all or none of them are not."""
    seen = {(manifest.root / path).resolve() for path in find_leaks(manifest)}
    rows = [row for row, file in enumerate(files) if file.resolve() not in seen]
    return rows if 0 < len(rows) < len(files) else None


def describe_leaks(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return how many held-out images have copies elsewhere, with an example."""
    parts = []
    for split in (Split.VAL, Split.TEST):
        held_out = manifest.get_samples(split)
        count = sum(sample.path in leaks for sample in held_out)
        if count:
            parts.append(f"{count} of {len(held_out)} {split.value} images")
    path, copy = next(iter(leaks.items()))
    where = copy.split.value if copy.split is not None else ""
    return (
        f"{' and '.join(parts)} have copies that are seen before (as {path}: {copy.path}, {where})"
    )


def describe_splits_without_leaks(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return in which splits something is left to measure without leaks, and in which nothing."""
    seen: dict[bool, list[str]] = {True: [], False: []}
    for split in (Split.VAL, Split.TEST):
        leaky = [sample.path in leaks for sample in manifest.get_samples(split)]
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


def resolve_leaks(manifest: Manifest, policy: str) -> tuple[Manifest, list[RejectedFile]]:
    """Return a manifest in which no held-out image is seen before, and what it leaves out.

    Args:
        manifest: With splits.
        policy: "drop" leaves out the copies that are seen before, so that what is held out stays
            whole; "move" lets all copies train, and the groups that they are in.

    Raises:
        DataError: A split, or a class of the training images, would have none left.
    """
    if policy == "move":
        kept, rejected = _move_leaks_to_training(manifest), list[RejectedFile]()
    else:
        kept, rejected = _drop_leaks(manifest)
    _check_splits_not_empty(manifest, kept, policy)
    return kept, rejected


def _move_leaks_to_training(manifest: Manifest) -> Manifest:
    """Let copies that are seen before train, with their groups, and the copies of these."""
    while leaks := find_leaks(manifest):
        found = [sample for sample in manifest.samples if sample.path in leaks]
        copies = {sample.duplicate_group for sample in found}
        groups = {s.group for s in manifest.samples if s.duplicate_group in copies} - {""}
        samples = tuple(
            replace(sample, split=Split.TRAIN)
            if sample.duplicate_group in copies or sample.group in groups
            else sample
            for sample in manifest.samples
        )
        manifest = replace(manifest, samples=samples)
    return manifest


def _drop_leaks(manifest: Manifest) -> tuple[Manifest, list[RejectedFile]]:
    hardest: dict[str, Sample] = {}
    for sample in manifest.samples:
        if sample.duplicate_group and sample.split is not None:
            other = hardest.setdefault(sample.duplicate_group, sample)
            if other.split is not None and _SPLIT_ORDER.index(sample.split) > _SPLIT_ORDER.index(
                other.split
            ):
                hardest[sample.duplicate_group] = sample
    kept, rejected = [], []
    for sample in manifest.samples:
        held_out = hardest.get(sample.duplicate_group, sample)
        if held_out.split is sample.split:
            kept.append(sample)
        else:
            reason = f"shows the same as {held_out.path}, which data.leakage=drop keeps"
            rejected.append(RejectedFile(sample.path, reason))
    return replace(manifest, samples=tuple(kept)), rejected


def _check_splits_not_empty(before: Manifest, after: Manifest, policy: str) -> None:
    def refuse(what: str) -> None:
        raise DataError(
            f"data.leakage={policy} would leave {what}: all of its images have copies in another "
            f"split. Mend the splits, or take data.leakage=warn."
        )

    for split in Split:
        if before.get_samples(split) and not after.get_samples(split):
            refuse(f"no {split.value} image")
    counts: Sequence[int] = after.count_per_class(Split.TRAIN)
    for name, count in zip(after.classes, counts, strict=True):
        if not count:
            refuse(f"class '{name}' without a training image")
