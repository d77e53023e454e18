"""Section with images of the pairs of classes that are confused most."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetune.report.photos.photo_card import PhotoCard, build_card
from finetune.report.run_facts import RunFacts, SplitPredictions
from finetune.report.sections.headline import choose_main_split, name_split
from finetune.units import format_percent

NUM_PAIRS = 5
NUM_EXAMPLES = 4
"""Images of each direction of a pair."""


@dataclass(frozen=True, slots=True)
class Direction:
    """Images of one class that are predicted as another.

    Attributes:
        label: True class.
        predicted: Predicted class.
        count: Number of these images.
        num_class: Images of the true class.
        cards: The most certain ones of them.
    """

    label: str
    predicted: str
    count: int
    num_class: int
    cards: tuple[PhotoCard, ...]


@dataclass(frozen=True, slots=True)
class ConfusedClasses:
    """Two classes that are confused, in one direction or both."""

    names: tuple[str, str]
    directions: tuple[Direction, ...]


@dataclass(frozen=True, slots=True)
class PairsSection:
    """Examples of the pairs that are confused most.

    Attributes:
        split: Name of the split.
        pairs: Pairs, the one with the most errors first.
    """

    split: str
    pairs: tuple[ConfusedClasses, ...]

    @property
    def cards(self) -> Iterator[PhotoCard]:
        """All cards, those of the first pair first."""
        for pair in self.pairs:
            for direction in pair.directions:
                yield from direction.cards


def build_pairs(facts: RunFacts) -> PairsSection | None:
    """Return examples of confused pairs; None for several labels, or without any mistake."""
    split = choose_main_split(facts)
    predictions = facts.predictions.get(split or "")
    if predictions is None or predictions.target.ndim == 2 or facts.photos is None:
        return None
    predicted = predictions.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != predictions.target)
    counts = Counter(
        tuple(sorted((int(predictions.target[row]), int(predicted[row])))) for row in wrong
    )
    # with equal counts the order of the classes
    chosen = sorted(counts, key=lambda pair: (-counts[pair], pair))[:NUM_PAIRS]
    pairs = [
        ConfusedClasses(
            (facts.classes[first], facts.classes[second]),
            tuple(
                direction
                for one, other in ((first, second), (second, first))
                if (direction := _build_direction(facts, predictions, one, other)).count
            ),
        )
        for first, second in chosen
    ]
    return PairsSection(name_split(split or ""), tuple(pairs)) if pairs else None


def _build_direction(
    facts: RunFacts, predictions: SplitPredictions, label: int, other: int
) -> Direction:
    table, target = predictions.probabilities, predictions.target
    rows = np.flatnonzero((target == label) & (table.argmax(axis=1) == other))
    shown = rows[np.argsort(-table[rows, other], kind="stable")][:NUM_EXAMPLES]
    cards = tuple(
        build_card(
            facts,
            predictions.paths[row],
            (("probability", format_percent(float(table[row, other]), decimals=0)),),
        )
        for row in shown.tolist()
    )
    num_class = int((target == label).sum())
    return Direction(facts.classes[label], facts.classes[other], len(rows), num_class, cards)
