"""Section on the images with the worst mistakes, and on the least certain ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.image_thresholds import get_image_thresholds
from finetune.report.photos.photo_card import PhotoCard, build_card
from finetune.report.run_facts import RunFacts, SplitPredictions
from finetune.report.sections.headline import choose_main_split, name_split
from finetune.units import format_percent

NUM_SHOWN = 12
"""Images of each kind."""

_MAX_LABELS = 3
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class MistakesSection:
    """Images that the network gets most wrong, and those that it is least certain of.

    Attributes:
        split: Name of the split.
        num_images: Images of the split.
        num_wrong: Images whose prediction is wrong.
        is_multi_label: Whether an image has any number of labels.
        worst: Wrong images, the one of the largest loss first.
        uncertain: Images whose two best classes are closest, or with labels at their threshold.
        saliency_note: Sentence on the saliency maps; empty without any.
        notes: Sentences on pictures that were left out.
    """

    split: str
    num_images: int
    num_wrong: int
    is_multi_label: bool
    worst: tuple[PhotoCard, ...]
    uncertain: tuple[PhotoCard, ...]
    saliency_note: str
    notes: tuple[str, ...]

    @property
    def cards(self) -> Iterator[PhotoCard]:
        """All cards, the most important first."""
        yield from self.worst
        yield from self.uncertain


def build_mistakes(facts: RunFacts) -> MistakesSection | None:
    """Return the worst mistakes of the main split; None without predictions."""
    split = choose_main_split(facts)
    predictions = facts.predictions.get(split or "")
    if predictions is None:
        return None
    if predictions.target.ndim == 2:
        return _build_of_labels(facts, predictions, split or "")
    table, target = predictions.probabilities, predictions.target
    rows = np.arange(len(target))
    predicted = table.argmax(axis=1)
    is_wrong = predicted != target
    worst = _sort(table[rows, target], np.flatnonzero(is_wrong))
    best_two = np.sort(table, axis=1)[:, -2:]
    uncertain = _sort(best_two[:, 1] - best_two[:, 0], rows)
    hints = _find_hints(facts)
    paths = predictions.paths

    def describe(row: int) -> PhotoCard:
        label, best = int(target[row]), int(predicted[row])
        lines = (
            ("true", f"{facts.classes[label]} {_percent(table[row, label])}"),
            ("predicted", f"{facts.classes[best]} {_percent(table[row, best])}"),
        )
        if best == label:
            second = int(np.argsort(-table[row], kind="stable")[1])
            lines = (lines[0], ("then", f"{facts.classes[second]} {_percent(table[row, second])}"))
        hint = hints.get(paths[row], "")
        return build_card(facts, paths[row], lines, is_wrong=best != label, hint=hint)

    return _build(facts, split or "", is_wrong, map(describe, worst), map(describe, uncertain))


def _build_of_labels(
    facts: RunFacts, predictions: SplitPredictions, split: str
) -> MistakesSection | None:
    """Return the images with the largest log loss over their labels."""
    thresholds = get_image_thresholds(facts, predictions)
    table, target = predictions.probabilities, predictions.target > 0
    chosen = table >= thresholds
    is_wrong = (chosen != target).any(axis=1)
    likelihood = np.where(target, table, 1 - table).clip(_SMALLEST)
    loss = -np.log(likelihood).sum(axis=1)
    worst = _sort(-loss, np.flatnonzero(is_wrong))
    distance = np.abs(_to_logits(table) - _to_logits(thresholds))
    uncertain = _sort(distance.min(axis=1), np.arange(len(table)))
    hints = _find_hints(facts)

    def name(row: int, columns: NDArray[np.int64]) -> str:
        order = columns[np.argsort(likelihood[row, columns], kind="stable")]
        shown = [f"{facts.classes[c]} {_percent(table[row, c])}" for c in order[:_MAX_LABELS]]
        more = len(order) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def describe_wrong(row: int) -> PhotoCard:
        kinds = (
            ("missed", np.flatnonzero(target[row] & ~chosen[row])),
            ("added", np.flatnonzero(~target[row] & chosen[row])),
            ("right", np.flatnonzero(target[row] & chosen[row])),
        )
        lines = tuple((kind, name(row, columns)) for kind, columns in kinds if len(columns))
        path = predictions.paths[row]
        return build_card(facts, path, lines, is_wrong=True, hint=hints.get(path, ""))

    def describe_uncertain(row: int) -> PhotoCard:
        column = int(distance[row].argmin())
        limit = format_percent(float(thresholds[row, column]))
        lines = (
            ("label", f"{facts.classes[column]} {format_percent(float(table[row, column]))}"),
            ("threshold", limit),
            ("true", "yes" if target[row, column] else "no"),
        )
        is_missed = bool(chosen[row, column] != target[row, column])
        return build_card(facts, predictions.paths[row], lines, is_wrong=is_missed)

    cards = map(describe_wrong, worst), map(describe_uncertain, uncertain)
    return _build(facts, split, is_wrong, *cards, is_multi_label=True)


def _build(
    facts: RunFacts,
    split: str,
    is_wrong: NDArray[np.bool_],
    worst: Iterator[PhotoCard],
    uncertain: Iterator[PhotoCard],
    *,
    is_multi_label: bool = False,
) -> MistakesSection:
    return MistakesSection(
        name_split(split),
        len(is_wrong),
        int(is_wrong.sum()),
        is_multi_label,
        tuple(worst),
        tuple(uncertain),
        "" if facts.photos is None else facts.photos.saliency_note,
        () if facts.photos is None else tuple(facts.photos.skipped),
    )


def _sort(score: NDArray[np.float64], rows: NDArray[np.int64]) -> list[int]:
    """Return the rows of the lowest scores, at most ``NUM_SHOWN``; ``score`` is of all rows."""
    order: list[int] = rows[np.argsort(score[rows], kind="stable")][:NUM_SHOWN].tolist()
    return order


def _percent(probability: float) -> str:
    """Return a probability in percent; never 100% for a wrong class nor 0% for a true one."""
    if 0 < probability < 0.005:
        return "<1%"
    if 0.995 <= probability < 1:
        return ">99%"
    return format_percent(float(probability), decimals=0)


def _to_logits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = probabilities.clip(_SMALLEST, 1 - _SMALLEST)
    logits: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return logits


def _find_hints(facts: RunFacts) -> dict[str, str]:
    """Return a sentence for each image whose label the audit doubts."""
    errors: Sequence[dict[str, object]] = (facts.audit or {}).get("label_errors") or ()
    return {
        str(error["path"]): f"Label to check: the audit expects {error['predicted_label']}."
        for error in errors
    }
