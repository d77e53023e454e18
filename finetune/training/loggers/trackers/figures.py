"""Charts as pictures, for trackers that have no charts of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetune.training.loggers.tracked_records import ReliabilityCurve, RunResults
from finetune.types import Evaluation

_MAX_NAMED_CLASSES = 40
"""Classes up to which the axes of a confusion matrix name them."""

_MAX_WRITTEN_CLASSES = 15
"""Classes up to which the cells of a confusion matrix hold their counts."""


def draw_charts(results: RunResults) -> Iterator[tuple[str, Any]]:
    """Yield name and matplotlib figure of each confusion matrix and reliability curve."""
    for split, evaluation in results.evaluations.items():
        if isinstance(evaluation, Evaluation):
            figure = _draw_confusion(evaluation, results.classes, split=split)
            yield f"confusion_matrix/{split}", figure
    for split, curve in results.reliability.items():
        yield f"calibration/{split}", _draw_reliability(curve, split=split)


def _draw_confusion(evaluation: Evaluation, classes: Sequence[str], *, split: str) -> Any:
    figure, axes = _create_figure()
    counts = np.array(evaluation.confusion_matrix)
    fractions = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues")
    axes.set(title=f"Confusion matrix ({split})", xlabel="Predicted", ylabel="Actual")
    if len(classes) <= _MAX_NAMED_CLASSES:
        # a dollar sign would start a formula
        names = [name.replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= _MAX_WRITTEN_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)
    return figure


def _draw_reliability(curve: ReliabilityCurve, *, split: str) -> Any:
    figure, axes = _create_figure()
    axes.plot((0, 1), (0, 1), linestyle="--", color="grey", label="perfect calibration")
    axes.plot(curve.confidence, curve.accuracy, marker="o", label="model")
    axes.set(
        title=f"Calibration ({split})",
        xlabel="Confidence",
        ylabel="Accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend()
    return figure


def _create_figure() -> tuple[Any, Any]:
    """Return a figure that no window and no global state of matplotlib knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
