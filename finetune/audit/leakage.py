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

    Images of one user-defined group leak as duplicates do; only groups by the names of images can
    be in several splits. For a test image the other is a training image, or a validation image if
    there is no such.
    """
    first_of: dict[tuple[str, str, Split], Sample] = {}
    for sample in manifest.samples:
        if sample.split is not None:
            for key in _list_keys(sample):
                first_of.setdefault((*key, sample.split), sample)
    leaks = {}
    for sample in manifest.samples:
        if sample.split is None:
            continue
        earlier_splits = _SPLIT_ORDER[: _SPLIT_ORDER.index(sample.split)]
        keys = _list_keys(sample)
        candidates = (first_of.get((*key, split)) for split in earlier_splits for key in keys)
        duplicate = next((other for other in candidates if other is not None), None)
        if duplicate is not None:
            leaks[sample.path] = duplicate
    return leaks


def _list_keys(sample: Sample) -> list[tuple[str, str]]:
    """Return what an image shares with others that may leak: duplicate group, then group."""
    keys = (("duplicate", sample.duplicate_group), ("group", sample.group))
    return [key for key in keys if key[1]]


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
    path, other = next(iter(leaks.items()))
    sample_of = {sample.path: sample for sample in manifest.samples}
    in_groups = [p for p, source in leaks.items() if not _is_duplicate(sample_of[p], source)]
    if not in_groups:
        found = "has a duplicate" if num_leaked == 1 else "have duplicates"
        example = f"{path}, a duplicate of {other.path}"
        return f"{' and '.join(counts)} {found} in {names} (such as {example})"
    path, other = in_groups[0], leaks[in_groups[0]]
    example = f"{path}, in the group '{other.group}' of {other.path}"
    found = "is" if num_leaked == 1 else "are"
    what = "in a group" if len(in_groups) == len(leaks) else "duplicates or in a group"
    return f"{' and '.join(counts)} {found} {what} with images of {names} (such as {example})"


def _is_duplicate(sample: Sample, other: Sample) -> bool:
    return bool(sample.duplicate_group) and sample.duplicate_group == other.duplicate_group


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
        duplicate_groups = {sample.duplicate_group for sample in leaked} - {""}
        groups = {
            sample.group
            for sample in manifest.samples
            if sample.duplicate_group in duplicate_groups or sample.path in leaks
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
    """Keep of each duplicate group, and of each group, only the images in its latest split."""
    latest: dict[tuple[str, str], Sample] = {}
    for sample in manifest.samples:
        for key in _list_keys(sample):
            other = latest.setdefault(key, sample)
            if _get_order(sample) > _get_order(other):
                latest[key] = sample
    kept, rejected = [], []
    for sample in manifest.samples:
        later = [
            (kind, latest[kind, name])
            for kind, name in _list_keys(sample)
            if latest[kind, name].split is not sample.split
        ]
        if not later:
            kept.append(sample)
            continue
        kind, held_out = later[0]
        relation = "duplicate of" if kind == "duplicate" else f"in the group '{sample.group}' of"
        reason = f"{relation} {held_out.path}, which data.leakage=drop keeps"
        rejected.append(RejectedFile(sample.path, reason))
    return replace(manifest, samples=tuple(kept)), rejected


def _get_order(sample: Sample) -> int:
    """Return the position of an image's split among all; -1 without one."""
    return -1 if sample.split is None else _SPLIT_ORDER.index(sample.split)


def _check_splits_not_empty(before: Manifest, after: Manifest, policy: str) -> None:
    """Check that no split and no training class has lost all of its images.

    Raises:
        DataError: Names the split or the class.
    """

    def fail(outcome: str) -> None:
        raise DataError(
            f"data.leakage={policy} would leave {outcome}: all of its images have duplicates, or "
            f"images of their group, in another split. Fix the splits, or set data.leakage=warn."
        )

    for split in Split:
        if before.get_samples(split) and not after.get_samples(split):
            fail(f"no {split.value} image")
    counts: Sequence[int] = after.count_per_class(Split.TRAIN)
    for name, count in zip(after.classes, counts, strict=True):
        if not count:
            fail(f"class '{name}' without a training image")
