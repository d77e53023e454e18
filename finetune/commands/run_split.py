"""Images of one split of a run, with their present labels, and all differences from the run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from finetune.commands.image_matching import Match, has_digests
from finetune.commands.run_images import LocatedImages, RunImages
from finetune.data.split import find_drawn_splits
from finetune.errors import DataError
from finetune.types import RejectedFile, Reporter, Sample, Split
from finetune.units import format_count


@dataclass(frozen=True, slots=True)
class RunDifferences:
    """Number of differences between the data as they are now and those of the run.

    Attributes:
        labels: Images with another label.
        evaluated_labels: Those among the evaluated images.
        splits: Images in another split.
        new_images: Images that are not in the run.
        unassigned_images: New images without a split, which are not evaluated.
        missing_images: Images of the run that were not found.
        changed_files: Images of the run whose files have another content.
    """

    labels: int = 0
    evaluated_labels: int = 0
    splits: int = 0
    new_images: int = 0
    unassigned_images: int = 0
    missing_images: int = 0
    changed_files: int = 0

    def to_json(self) -> dict[str, int]:
        """Return JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """Return a sentence on the differences, and one on images without a split; "" if none."""
        counts = {
            "label": self.labels,
            "split": self.splits,
            "new image": self.new_images,
            "missing image": self.missing_images,
            "changed file": self.changed_files,
        }
        parts = [format_count(count, noun) for noun, count in counts.items() if count]
        if not parts:
            return ""
        if self.labels:
            parts[0] += f" ({self.evaluated_labels:,} of the evaluated images)"
        sentence = f"Differences from the run's data: {', '.join(parts)}."
        if self.unassigned_images:
            sentence += (
                " New images without a split are not evaluated; to evaluate them, name a folder or "
                "CSV with them alone."
            )
        return sentence


@dataclass(frozen=True, slots=True)
class SelectedImages:
    """Images of one split of a run.

    Attributes:
        samples: Images, those of the run in its order and then new ones.
        matches: Relation of each image to the run.
        split: The split.
        differences: Differences of all data from those of the run.
    """

    samples: list[Sample]
    matches: list[Match]
    split: Split
    differences: RunDifferences


def select_run_images(
    located: LocatedImages, run: RunImages, split: Split | None
) -> SelectedImages:
    """Return the images of a split of the run, as they are now, and what differs.

    Splits that the data give are those that count, as they are now; splits that the run has drawn
    are kept.

    Args:
        located: Images as they are now.
        run: Images of the run.
        split: The split; None takes test, else val.

    Raises:
        DataError: The split does not exist, or none of its images is found.
    """
    manifest = run.manifest
    order = {sample.path: number for number, sample in enumerate(manifest.samples)}
    splits = _find_splits(located, run)
    selected = choose_split([*splits, *(sample.split for sample in manifest.samples)], split)
    rows = [row for row, own_split in enumerate(splits) if own_split is selected]
    rows = [row for row in rows if not _was_left_out(located, run, row)]
    rows.sort(key=lambda row: _get_order(located.matches[row], order))
    expected = manifest.get_samples(selected)
    if not rows:
        raise DataError(
            f"None of the {format_count(len(expected), f'{selected} image')} of the run is below "
            f"{located.path}. Give the folder in which they are now."
        )
    differences = _count_differences(located, run, splits, set(rows))
    samples = [located.scan.samples[row] for row in rows]
    return SelectedImages(samples, [located.matches[row] for row in rows], selected, differences)


def choose_split(present: Sequence[Split | None], split: Split | None) -> Split:
    """Return the requested split, or else test, val or train, whichever is present first.

    Raises:
        DataError: The requested split is not present.
    """
    if split is not None:
        if split not in present:
            names = ", ".join(sorted({str(name) for name in present if name is not None}))
            raise DataError(f"There is no {split} split; available: {names}.")
        return split
    return next(s for s in (Split.TEST, Split.VAL, Split.TRAIN) if s in present)


def _find_splits(located: LocatedImages, run: RunImages) -> list[Split | None]:
    """Return the split of each image: that of the data, or that which the run has drawn."""
    drawn = find_drawn_splits({sample.split for sample in located.scan.samples})
    splits = []
    for sample, match in zip(located.scan.samples, located.matches, strict=True):
        before = None if match.original is None else match.original.split
        is_drawn = sample.split is None or (sample.split is Split.TRAIN and before in drawn)
        is_moved = run.moves_leaks and before is Split.TRAIN
        splits.append(before if before is not None and (is_drawn or is_moved) else sample.split)
    return splits


def _was_left_out(located: LocatedImages, run: RunImages, row: int) -> bool:
    """Return whether the run left a file out, as unreadable or as a leaked duplicate."""
    is_unknown = located.matches[row].original is None
    return is_unknown and located.scan.samples[row].path in run.rejected


def _get_order(match: Match, order: dict[str, int]) -> int:
    return len(order) if match.original is None else order[match.original.path]


def _count_differences(
    located: LocatedImages, run: RunImages, splits: Sequence[Split | None], selected: set[int]
) -> RunDifferences:
    labels: list[int] = []
    num_splits = num_found = num_changed = 0
    new: list[int] = []
    for row, (sample, match) in enumerate(zip(located.scan.samples, located.matches, strict=True)):
        if match.original is None:
            if not _was_left_out(located, run, row):
                new.append(row)
            continue
        num_found += 1
        num_changed += match.has_changed
        num_splits += splits[row] is not match.original.split
        if sample.label != match.original.label:
            labels.append(row)
    return RunDifferences(
        labels=len(labels),
        evaluated_labels=len(selected.intersection(labels)),
        splits=num_splits,
        new_images=len(new),
        unassigned_images=sum(splits[row] is None for row in new),
        missing_images=len(run.manifest.samples) - num_found,
        changed_files=num_changed,
    )


def report_differences(
    located: LocatedImages,
    run: RunImages,
    selected: SelectedImages,
    unreadable: Sequence[RejectedFile],
    reporter: Reporter,
) -> None:
    """Tell which images are evaluated, and what differs from the run.

    Args:
        located: Images as they are now.
        run: Images of the run.
        selected: Images of the evaluated split.
        unreadable: Those that are left out, as they cannot be read.
        reporter: Receives notes and warnings.
    """
    split, path = selected.split, located.path
    if located.is_in_place:
        reporter.note(f"Evaluating on the {split} split of the run ({path}).")
    else:
        num_new = sum(match.original is None for match in selected.matches)
        own = format_count(len(selected.matches) - num_new, f"{split} image")
        new = f" and {format_count(num_new, 'new image')}" if num_new else ""
        reporter.note(f"Evaluating on the {own} of the run{new}, found below {path}.")
    text = selected.differences.describe()
    if text:
        reporter.note(text)
    if not has_digests(run.manifest) and (text or not located.is_in_place):
        reporter.note(
            "The run was made by an earlier release, without digests of its images: they are "
            "identified by their paths alone."
        )
    if unreadable:
        entry = unreadable[0]
        reporter.warn(
            f"{format_count(len(unreadable), 'file')} left out, first {entry.path}: {entry.reason}"
        )
    found = {m.original.path for m in located.matches if m.original is not None}
    expected = run.manifest.get_samples(split)
    missing = [sample for sample in expected if sample.path not in found]
    if missing:
        images = format_count(len(expected), f"{split} image")
        reporter.warn(
            f"{len(missing):,} of {images} of the run {'was' if len(missing) == 1 else 'were'} not "
            f"found (such as {missing[0].path}): the metrics are those of the others"
        )
