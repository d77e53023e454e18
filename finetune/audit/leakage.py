"""Leakage: held-out images with duplicates in the training data, and the policies against it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.types import RejectedFile, Reporter, Sample, Split
from finetune.units import format_count

_SPLIT_ORDER = (Split.TRAIN, Split.VAL, Split.TEST)
"""Splits in the order in which a run uses them; validation images select the best epoch."""


def find_leaks(manifest: Manifest) -> dict[str, Sample]:
    """Return the leaked images: by the path of each, its duplicate in an earlier split.

    For a test image this is a training image, or a validation image if there is no such.
    """
    first_of: dict[tuple[str, Split], Sample] = {}
    for sample in manifest.samples:
        if sample.duplicate_group and sample.split is not None:
            first_of.setdefault((sample.duplicate_group, sample.split), sample)
    leaks = {}
    for sample in manifest.samples:
        if not sample.duplicate_group or sample.split is None:
            continue
        earlier_splits = _SPLIT_ORDER[: _SPLIT_ORDER.index(sample.split)]
        candidates = (first_of.get((sample.duplicate_group, split)) for split in earlier_splits)
        duplicate = next((other for other in candidates if other is not None), None)
        if duplicate is not None:
            leaks[sample.path] = duplicate
    return leaks


def find_rows_without_leaks(manifest: Manifest, files: Sequence[Path]) -> list[int] | None:
    """Return the rows of the files that have not leaked; None if these are all files or none."""
    leaked = {(manifest.root / path).resolve() for path in find_leaks(manifest)}
    rows = [row for row, file in enumerate(files) if file.resolve() not in leaked]
    return rows if 0 < len(rows) < len(files) else None


def describe_leaks(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return the numbers of leaked images of each split, with an example."""
    counts = []
    num_leaked = 0
    for split in (Split.VAL, Split.TEST):
        held_out = manifest.get_samples(split)
        count = sum(sample.path in leaks for sample in held_out)
        if count:
            num_leaked += count
            images = format_count(len(held_out), f"{split.value} image")
            counts.append(f"{count:,} of {images}")
    sources = {duplicate.split for duplicate in leaks.values()}
    names = " or ".join(split.value for split in _SPLIT_ORDER if split in sources)
    path, duplicate = next(iter(leaks.items()))
    found = "has a duplicate" if num_leaked == 1 else "have duplicates"
    return (
        f"{' and '.join(counts)} {found} in {names} (such as {path}, a duplicate of "
        f"{duplicate.path})"
    )


def describe_splits_without_leaks(manifest: Manifest, leaks: Mapping[str, Sample]) -> str:
    """Return for which splits metrics without leaked images exist, as a sentence without its stop.

    Args:
        manifest: Images with their splits.
        leaks: Result of ``find_leaks``, not empty.
    """
    splits: dict[bool, list[str]] = {True: [], False: []}
    for split in (Split.VAL, Split.TEST):
        is_leaked = [sample.path in leaks for sample in manifest.get_samples(split)]
        if any(is_leaked):
            splits[all(is_leaked)].append(split.value)
    clauses = []
    if splits[False]:
        names = f" for {' and '.join(splits[False])}" if splits[True] else ""
        clauses.append(f"Metrics without them are also reported{names}")
    if splits[True]:
        names = " and no ".join(splits[True])
        clauses.append(f"no {names} image remains without them")
    text = "; ".join(clauses)
    return text[0].upper() + text[1:]


def apply_leakage_policy(
    manifest: Manifest, policy: str, reporter: Reporter
) -> tuple[Manifest, list[RejectedFile]]:
    """Apply ``data.leakage``; return the manifest and the images that it drops.

    Args:
        manifest: Images with their splits and duplicate groups.
        policy: "ignore" and "warn" change nothing, "error" raises, "drop" and "move" are those of
            ``resolve_leaks``.
        reporter: Receives the warning or note.

    Raises:
        DataError: Images leak and the policy is "error", or resolving the leaks would empty a split
            or a training class.
    """
    leaks = find_leaks(manifest)
    if not leaks or policy == "ignore":
        return manifest, []
    summary = describe_leaks(manifest, leaks)
    if policy == "error":
        raise DataError(
            f"data.leakage=error: {summary}. Fix the splits, or set data.leakage to drop, move or "
            f"warn."
        )
    if policy == "warn":
        reporter.warn(
            f"{summary}: metrics on them are too optimistic. "
            f"{describe_splits_without_leaks(manifest, leaks)}. data.leakage=drop or move fixes "
            f"the splits."
        )
        return manifest, []
    resolved, dropped = resolve_leaks(manifest, policy)
    images = "1 image" if len(dropped) == 1 else f"{len(dropped)} images"
    action = f"dropped {images}" if policy == "drop" else "moved all of them to train"
    reporter.note(f"{summary}: {action} (data.leakage={policy}).")
    return resolved, dropped


def resolve_leaks(manifest: Manifest, policy: str) -> tuple[Manifest, list[RejectedFile]]:
    """Return a manifest without leaked images, and the images that it drops.

    Args:
        manifest: Images with their splits and duplicate groups.
        policy: "drop" drops the duplicates in earlier splits, so that the held-out splits stay
            complete; "move" moves all duplicates to the training split, with the groups of images
            that they belong to.

    Raises:
        DataError: A split, or a class of the training split, would be empty.
    """
    if policy == "move":
        kept, rejected = _move_leaks_to_training(manifest), list[RejectedFile]()
    else:
        kept, rejected = _drop_leaks(manifest)
    _check_splits_not_empty(manifest, kept, policy)
    return kept, rejected


def _move_leaks_to_training(manifest: Manifest) -> Manifest:
    """Move duplicate groups that leak to training, their groups, and the duplicates of these."""
    while leaks := find_leaks(manifest):
        leaked = [sample for sample in manifest.samples if sample.path in leaks]
        duplicate_groups = {sample.duplicate_group for sample in leaked}
        groups = {
            sample.group
            for sample in manifest.samples
            if sample.duplicate_group in duplicate_groups
        } - {""}
        samples = tuple(
            replace(sample, split=Split.TRAIN)
            if sample.duplicate_group in duplicate_groups or sample.group in groups
            else sample
            for sample in manifest.samples
        )
        manifest = replace(manifest, samples=samples)
    return manifest


def _drop_leaks(manifest: Manifest) -> tuple[Manifest, list[RejectedFile]]:
    """Keep of each duplicate group only the images in the latest of its splits."""
    latest: dict[str, Sample] = {}
    for sample in manifest.samples:
        if sample.duplicate_group and sample.split is not None:
            other = latest.setdefault(sample.duplicate_group, sample)
            if other.split is not None and _SPLIT_ORDER.index(sample.split) > _SPLIT_ORDER.index(
                other.split
            ):
                latest[sample.duplicate_group] = sample
    kept, rejected = [], []
    for sample in manifest.samples:
        held_out = latest.get(sample.duplicate_group, sample)
        if held_out.split is sample.split:
            kept.append(sample)
        else:
            reason = f"duplicate of {held_out.path}, which data.leakage=drop keeps"
            rejected.append(RejectedFile(sample.path, reason))
    return replace(manifest, samples=tuple(kept)), rejected


def _check_splits_not_empty(before: Manifest, after: Manifest, policy: str) -> None:
    """Check that no split and no training class has lost all of its images.

    Raises:
        DataError: Names the split or the class.
    """

    def fail(outcome: str) -> None:
        raise DataError(
            f"data.leakage={policy} would leave {outcome}: all of its images have duplicates in "
            f"another split. Fix the splits, or set data.leakage=warn."
        )

    for split in Split:
        if before.get_samples(split) and not after.get_samples(split):
            fail(f"no {split.value} image")
    counts: Sequence[int] = after.count_per_class(Split.TRAIN)
    for name, count in zip(after.classes, counts, strict=True):
        if not count:
            fail(f"class '{name}' without a training image")
