"""Section on the images whose prediction changed between two runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.comparison.runs_section import label_runs
from finetune.report.comparison.shared_images import (
    HELD_OUT,
    SharedImages,
    match_images,
)
from finetune.report.run_facts import RunFacts
from finetune.units import format_percent

MAX_LISTED = 40
"""Images that are listed for a pair of runs; the most certain changes."""

MAX_PICTURES = 120
"""Thumbnails on the page, however many runs are compared."""

MAX_LABELS = 8
"""Labels of an image that are named; of more, their number."""

_SPLIT_NAMES = {"val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class ChangedImage:
    """Image whose prediction changed.

    Attributes:
        path: Path relative to the data folder.
        label: True class, or true labels.
        before: Class or labels predicted by the first run, with their probabilities.
        after: Class or labels predicted by the second run, with their probabilities.
        kind: "now right", "now wrong" or "wrong in both"; of several labels with those that were
            added and dropped.
        picture: Data URI of its thumbnail; empty without one.
    """

    path: str
    label: str
    before: str
    after: str
    kind: str
    picture: str = ""


@dataclass(frozen=True, slots=True)
class ChangedList:
    """Images of a split whose prediction differs between two runs.

    Attributes:
        first: Label of the first run.
        second: Label of the second run.
        split: Name of the split.
        num_changed: Number of these images.
        num_images: Number of images that both runs hold out.
        images: The images whose predictions are the most certain, or those of several labels whose
            probabilities changed most.
        is_multi_label: Whether an image has any number of labels.
    """

    first: str
    second: str
    split: str
    num_changed: int
    num_images: int
    images: tuple[ChangedImage, ...]
    is_multi_label: bool = False


@dataclass(frozen=True, slots=True)
class ChangedSection:
    """Changed images of all runs against the first."""

    lists: tuple[ChangedList, ...]

    @property
    def paths(self) -> list[str]:
        """Paths of the images that are listed, each once, in the order of the first run."""
        every = (image.path for one in self.lists for image in one.images)
        return list(dict.fromkeys(every))

    @property
    def has_pictures(self) -> bool:
        """Whether any image has a thumbnail."""
        return any(image.picture for one in self.lists for image in one.images)


def build_changed(runs: Sequence[RunFacts]) -> ChangedSection | None:
    """Return the images whose prediction changed; None where no images can be compared."""
    labels = label_runs(runs)
    lists = []
    for label, run in zip(labels[1:], runs[1:], strict=True):
        for split in HELD_OUT:
            shared = match_images(runs[0], run, split)
            if shared is None or not len(shared.target):
                continue
            pair = labels[0], label
            lists.append(
                _list_changes(shared, runs[0], pair)
                if shared.thresholds is None
                else _list_label_changes(shared, shared.thresholds, runs[0], pair)
            )
    return ChangedSection(tuple(lists)) if lists else None


def _list_changes(shared: SharedImages, first: RunFacts, labels: tuple[str, str]) -> ChangedList:
    classes = first.classes
    thumbnails = {} if first.photos is None else first.photos.thumbnails
    before, after = shared.before.argmax(axis=1), shared.after.argmax(axis=1)
    rows = np.flatnonzero(before != after)
    certainty = shared.before.max(axis=1)[rows] + shared.after.max(axis=1)[rows]
    rows = rows[np.argsort(-certainty, kind="stable")]
    images = []
    for row in rows[:MAX_LISTED].tolist():
        target = int(shared.target[row])
        is_right = (int(before[row]) == target, int(after[row]) == target)
        kind = "now right" if is_right[1] else "now wrong" if is_right[0] else "wrong in both"
        words = [
            f"{classes[int(index)]} ({format_percent(float(table[row, index]), decimals=0)})"
            for index, table in ((before[row], shared.before), (after[row], shared.after))
        ]
        path = shared.paths[row]
        picture = thumbnails.get(path, "")
        images.append(ChangedImage(path, classes[target], words[0], words[1], kind, picture))
    return ChangedList(
        *labels, _SPLIT_NAMES[shared.split], len(rows), len(shared.target), tuple(images)
    )


def _list_label_changes(
    shared: SharedImages,
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
    first: RunFacts,
    labels: tuple[str, str],
) -> ChangedList:
    """Return the images of which any label is predicted by one run only."""
    thumbnails = {} if first.photos is None else first.photos.thumbnails
    is_true = shared.target > 0
    before, after = shared.before >= limits[0], shared.after >= limits[1]
    is_changed = before != after
    rows = np.flatnonzero(is_changed.any(axis=1))
    shift = np.where(is_changed, np.abs(shared.after - shared.before), 0).max(axis=1, initial=0)
    rows = rows[np.argsort(-shift[rows], kind="stable")]
    images = []
    for row in rows[:MAX_LISTED].tolist():
        errors = [int((table[row] != is_true[row]).sum()) for table in (before, after)]
        names = (
            _list_labels(first.classes, is_true[row]),
            _list_labels(first.classes, before[row], shared.before[row]),
            _list_labels(first.classes, after[row], shared.after[row]),
        )
        moves = (
            (after[row] & ~before[row], "added"),
            (before[row] & ~after[row], "dropped"),
        )
        shown = [
            f"{_list_labels(first.classes, chosen)} {word}"
            for chosen, word in moves
            if chosen.any()
        ]
        path = shared.paths[row]
        kind = f"{_compare_errors(*errors)}: {'; '.join(shown)}"
        images.append(ChangedImage(path, *names, kind, thumbnails.get(path, "")))
    return ChangedList(
        *labels,
        _SPLIT_NAMES[shared.split],
        len(rows),
        len(shared.target),
        tuple(images),
        is_multi_label=True,
    )


def _compare_errors(before: int, after: int) -> str:
    """Return in words how the number of wrong labels of an image changed."""
    if not after or not before:
        return "now wrong" if after else "now right"
    if after == before:
        return "as many wrong"
    return "fewer wrong" if after < before else "more wrong"


def _list_labels(
    classes: Sequence[str],
    is_chosen_K: NDArray[np.bool_],
    probabilities_K: NDArray[np.float64] | None = None,
) -> str:
    """Return the names of labels, the most probable first, with their probabilities if given."""
    chosen = np.flatnonzero(is_chosen_K)
    if probabilities_K is not None:
        chosen = chosen[np.argsort(-probabilities_K[chosen], kind="stable")]
    names = [
        classes[index]
        if probabilities_K is None
        else f"{classes[index]} ({format_percent(float(probabilities_K[index]), decimals=0)})"
        for index in chosen[:MAX_LABELS].tolist()
    ]
    if len(chosen) > MAX_LABELS:
        names.append(f"{len(chosen) - MAX_LABELS} more")
    return ", ".join(names) or "none"
