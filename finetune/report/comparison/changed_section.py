"""Section on the images whose prediction changed between two runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.report.comparison.runs_section import label_runs
from finetune.report.comparison.shared_images import HELD_OUT, SharedImages, match_images
from finetune.report.run_facts import RunFacts
from finetune.units import format_percent

MAX_LISTED = 40
"""Images that are listed for a pair of runs; the most certain changes."""

MAX_PICTURES = 120
"""Thumbnails on the page, however many runs are compared."""


@dataclass(frozen=True, slots=True)
class ChangedImage:
    """Image whose prediction changed.

    Attributes:
        path: Path relative to the data folder.
        label: True class.
        before: Class predicted by the first run, with its probability.
        after: Class predicted by the second run, with its probability.
        kind: "now right", "now wrong" or "wrong in both".
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
        images: The images whose predictions are the most certain.
    """

    first: str
    second: str
    split: str
    num_changed: int
    num_images: int
    images: tuple[ChangedImage, ...]


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
            # of several labels, no single prediction changes
            if shared is not None and shared.target.ndim == 1 and len(shared.target):
                lists.append(_list_changes(shared, runs[0], (labels[0], label)))
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
        *labels,
        {"val": "validation", "test": "test"}[shared.split],
        len(rows),
        len(shared.target),
        tuple(images),
    )
