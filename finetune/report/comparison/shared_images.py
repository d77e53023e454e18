"""Images that two runs both hold out, with the predictions of both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.image_thresholds import get_image_thresholds
from finetune.report.run_facts import RunFacts, SplitPredictions

HELD_OUT = ("test", "val")
"""Splits that are compared; that of folds counts as the validation split."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedImages:
    """Predictions of two runs for the same images.

    Attributes:
        split: "test" or "val".
        paths: Path of each image, N of them.
        target: Class index of each, shape (N,); of multi-label images 1 for each label of an image,
            else 0, shape (N, K).
        groups: Group of dependent images of each, shape (N,).
        before: Probabilities by the first run, shape (N, K).
        after: Probabilities by the second run, shape (N, K).
        thresholds: Probability from which each label of each image is predicted by either run, in
            the class order of the first, each of shape (N, K); None for one class of each image.
        num_only_one: Images that only one of the runs holds out.
        num_relabelled: Shared images that are left out, as their classes differ.
    """

    split: str
    paths: Sequence[str]
    target: NDArray[np.int64]
    groups: NDArray[np.int64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    num_only_one: int
    num_relabelled: int
    thresholds: tuple[NDArray[np.float64], NDArray[np.float64]] | None


def get_held_out(facts: RunFacts, split: str) -> SplitPredictions | None:
    """Return the predictions of a split; those of all folds stand for the validation split."""
    found = facts.predictions.get(split)
    if found is None and split == "val":
        return facts.predictions.get("out_of_fold")
    return found


def match_images(first: RunFacts, second: RunFacts, split: str) -> SharedImages | None:
    """Return the images of a split that both runs hold out; None without predictions of both.

    Images are the same if their paths are, and the hashes of their bytes where both are known.
    Without any such image, hashes alone decide, as data may have moved.

    Args:
        first: First run.
        second: Second run, with the same classes in any order.
        split: "test" or "val".
    """
    one, other = get_held_out(first, split), get_held_out(second, split)
    if one is None or other is None or one.target.ndim != other.target.ndim:
        return None
    pairs = _pair_rows(one, other)
    order = [second.classes.index(name) for name in first.classes]
    position = np.argsort(order)  # class index of the second run to that of the first
    if one.target.ndim == 2:
        same = [(a, b) for a, b in pairs if (one.target[a] == other.target[b][order]).all()]
    else:
        same = [(a, b) for a, b in pairs if one.target[a] == position[other.target[b]]]
    rows, others = (np.array([pair[k] for pair in same], np.int64) for k in (0, 1))
    thresholds = None
    if one.target.ndim == 2:
        thresholds = (
            get_image_thresholds(first, one)[rows],
            get_image_thresholds(second, other)[others][:, order],
        )
    return SharedImages(
        split,
        [one.paths[row] for row in rows],
        one.target[rows].astype(np.int64),
        one.groups[rows],
        one.probabilities[rows],
        other.probabilities[others][:, order],
        len(one.paths) + len(other.paths) - 2 * len(pairs),
        len(pairs) - len(same),
        thresholds,
    )


def _pair_rows(one: SplitPredictions, other: SplitPredictions) -> list[tuple[int, int]]:
    by_path = {path: row for row, path in enumerate(other.paths)}
    pairs = [
        (row, by_path[path])
        for row, path in enumerate(one.paths)
        if path in by_path and _may_be_same(one.digests[row], other.digests[by_path[path]])
    ]
    if pairs:
        return pairs
    by_digest = {digest: row for row, digest in enumerate(other.digests) if digest}
    return [(row, by_digest[one]) for row, one in enumerate(one.digests) if one in by_digest]


def _may_be_same(one: str, other: str) -> bool:
    return not one or not other or one == other
