"""Section on confusions: matrix as a heat map, and the pairs that are confused most."""

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split, name_split
from finetune.report.split_metrics import count_confusions

MAX_DRAWN_CLASSES = 30
"""Classes up to which the matrix is drawn."""

NUM_PAIRS = 12
_LARGEST_CELL, _SMALLEST_CELL, _SIDE = 64, 22, 620
_LETTER_WIDTH = 6.6
_WIDE_LETTERS = "mwMW@"
_MAX_LETTERS = 22


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Images of a class that are predicted as another.

    Attributes:
        label: True class.
        predicted: Predicted class.
        count: Number of these images.
        fraction: Fraction of the images of the true class.
    """

    label: str
    predicted: str
    count: int
    fraction: float


@dataclass(frozen=True, slots=True)
class HeatCell:
    """Cell of the matrix.

    Attributes:
        x: Left edge, in pixels.
        y: Upper edge.
        count: Number of images.
        fraction: Fraction of the images of the true class, its opacity.
        title: Description.
        is_hit: Whether true and predicted class are the same.
    """

    x: float
    y: float
    count: int
    fraction: float
    title: str
    is_hit: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Confusion matrix in the coordinates of its SVG."""

    cell: float
    left: float
    top: float
    width: float
    height: float
    names: tuple[str, ...]
    cells: tuple[HeatCell, ...]
    has_counts: bool
    is_turned: bool


@dataclass(frozen=True, slots=True)
class ConfusionSection:
    """Confusions of a split.

    Attributes:
        split: Name of the split.
        num_images: Number of its images.
        num_errors: Number of images that are misclassified.
        heat_map: Matrix; None for many classes.
        pairs: Pairs that are confused most.
        num_other_pairs: Pairs that are not listed.
        most_of_other_pairs: Largest number of images of one of them.
    """

    split: str
    num_images: int
    num_errors: int
    heat_map: HeatMap | None
    pairs: tuple[ConfusedPair, ...]
    num_other_pairs: int
    most_of_other_pairs: int


def build_confusion(facts: RunFacts) -> ConfusionSection | None:
    """Return the confusions of the main split; None for several labels, or without predictions."""
    split = choose_main_split(facts)
    predictions = facts.predictions.get(split or "")
    if predictions is None or predictions.target.ndim == 2:
        return None
    predicted = predictions.probabilities.argmax(axis=1)
    matrix = count_confusions(predictions.target, predicted, len(facts.classes))
    pairs = find_confused_pairs(matrix, facts.classes)
    # many pairs with one image each: any of them would be listed by chance
    is_listed = len(pairs) <= NUM_PAIRS or pairs[0].count > 1
    shown = tuple(pairs[:NUM_PAIRS]) if is_listed else ()
    is_drawn = len(facts.classes) <= MAX_DRAWN_CLASSES
    return ConfusionSection(
        name_split(split or ""),
        int(matrix.sum()),
        int(matrix.sum() - matrix.trace()),
        _draw(matrix, facts.classes) if is_drawn else None,
        shown,
        len(pairs) - len(shown),
        pairs[len(shown)].count if len(pairs) > len(shown) else 0,
    )


def find_confused_pairs(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> list[ConfusedPair]:
    """Return the pairs of true and predicted class with errors, the most frequent first.

    Args:
        matrix: Confusion matrix, shape (K, K); rows are true classes.
        classes: Class names.
    """
    support = matrix.sum(axis=1)
    rows, columns = np.nonzero(matrix)
    pairs = [
        ConfusedPair(
            classes[row], classes[column], int(matrix[row, column]),
            float(matrix[row, column] / support[row]),
        )
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if row != column
    ]  # fmt: skip
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.fraction))


def shorten(name: str, max_letters: int = _MAX_LETTERS) -> str:
    """Return a name that has at most so many letters."""
    return name if len(name) <= max_letters else name[: max_letters - 1] + "\u2026"


def estimate_width(name: str) -> float:
    """Return the width of a name in the matrix, in pixels; some letters are wider than others."""
    return sum(map(_estimate_letter, name))


def _estimate_letter(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF" or letter in _WIDE_LETTERS:
        return 2 * _LETTER_WIDTH
    return 1.4 * _LETTER_WIDTH if letter.isupper() else _LETTER_WIDTH


def _draw(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> HeatMap:
    names = tuple(map(shorten, classes))
    longest = max(map(estimate_width, names))
    left = 14 + longest + 18
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, (_SIDE - left) / len(classes)))
    # names below the columns are turned where they have no room
    top, side = 6.0, cell * len(classes)
    turned = longest > cell - 4
    # a name that is turned by 45 degrees ends so far to the right of its column's middle
    ends = [
        (column + 0.5) * cell + estimate_width(name) * 0.75 for column, name in enumerate(names)
    ]
    right = left + (max(ends) if turned else 0)
    below = (longest * 0.75 if turned else 14) + 34
    support = np.maximum(matrix.sum(axis=1), 1)
    cells = tuple(
        HeatCell(
            round(left + column * cell, 1),
            round(top + row * cell, 1),
            int(matrix[row, column]),
            round(float(matrix[row, column] / support[row]), 3),
            f"{classes[row]} predicted as {classes[column]}: {matrix[row, column]} of "
            f"{matrix[row].sum()}",
            row == column,
        )
        for row in range(len(classes))
        for column in range(len(classes))
    )
    largest = len(f"{matrix.max()}") * 6.5 + 2
    return HeatMap(
        round(cell, 1),
        round(left, 1),
        top,
        round(max(right, left + side + 8), 1),
        round(top + side + below, 1),
        names,
        cells,
        largest < cell,
        turned,
    )
