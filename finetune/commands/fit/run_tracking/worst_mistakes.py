"""Worst mistakes of the finished model as photos and as a table for trackers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.decode import decode_image
from finetune.errors import DataError
from finetune.training.loggers.tracked_records import MAX_PICTURES, Cell, Picture, TrackedTable
from finetune.types import ReadOptions, Sample

_MAX_SIDE = 384
"""Longer side of a logged photo, in pixels."""

_COLUMNS = (
    "number", "image", "actual", "predicted", "probability of predicted", "probability of actual",
)  # fmt: skip

# shape suffixes: N images, K classes or labels


@dataclass(frozen=True, slots=True)
class Mistake:
    """Image with a wrong prediction.

    Attributes:
        path: Path of the image, relative to the data folder.
        actual: Its class, or its labels.
        predicted: Predicted class, or labels.
        predicted_probability: Probability of the predicted class; of labels that of the value that
            is predicted for the label that is wrong most surely.
        actual_probability: Probability of the class, or of the true value of that label.
    """

    path: str
    actual: str
    predicted: str
    predicted_probability: float
    actual_probability: float


def list_class_mistakes(
    samples: Sequence[Sample],
    probabilities_NK: NDArray[np.float64],
    target_N: NDArray[np.int64],
    *,
    classes: Sequence[str],
) -> Iterator[Mistake]:
    """Yield the images whose class is not predicted, that with the least probable class first."""
    predicted_N = probabilities_NK.argmax(axis=1)
    of_actual_N = probabilities_NK[np.arange(len(samples)), target_N]
    wrong = np.flatnonzero(predicted_N != target_N)
    for row in wrong[np.argsort(of_actual_N[wrong], kind="stable")]:
        yield Mistake(
            samples[row].path,
            classes[target_N[row]],
            classes[predicted_N[row]],
            float(probabilities_NK[row, predicted_N[row]]),
            float(of_actual_N[row]),
        )


def list_label_mistakes(
    samples: Sequence[Sample],
    probabilities_NK: NDArray[np.float64],
    target_NK: NDArray[np.float64],
    *,
    classes: Sequence[str],
    thresholds: Sequence[float],
) -> Iterator[Mistake]:
    """Yield the multi-label images with a wrong label, that with the least probable value first."""
    is_true_NK = target_NK > 0
    is_predicted_NK = probabilities_NK >= np.asarray(thresholds)
    of_truth_NK = np.where(is_true_NK, probabilities_NK, 1 - probabilities_NK)
    of_wrong_NK = np.where(is_true_NK != is_predicted_NK, of_truth_NK, np.inf)
    least_N = of_wrong_NK.min(axis=1)
    for row in np.argsort(least_N, kind="stable"):
        if not np.isfinite(least_N[row]):
            return
        yield Mistake(
            samples[row].path,
            _join_labels(classes, is_true_NK[row]),
            _join_labels(classes, is_predicted_NK[row]),
            float(1 - least_N[row]),
            float(least_N[row]),
        )


def _join_labels(classes: Sequence[str], is_present_K: NDArray[np.bool_]) -> str:
    present = zip(classes, is_present_K, strict=True)
    return ", ".join(name for name, is_present in present if is_present) or "no label"


def show_mistakes(
    mistakes: Iterable[Mistake], root: Path, options: ReadOptions
) -> tuple[list[Picture], TrackedTable]:
    """Return the first mistakes as photos and as a table.

    The number of a row is that of its photo, which is logged once. Photos that were deleted or
    damaged since they were evaluated are left out.

    Args:
        mistakes: Mistakes, the worst first; ``MAX_PICTURES`` of them are shown.
        root: Data folder.
        options: How images are read.
    """
    pictures: list[Picture] = []
    rows: list[list[Cell]] = []
    options = replace(options, num_channels=3, bit_depth=8)
    for mistake in islice(mistakes, MAX_PICTURES):
        number = len(rows) + 1
        with suppress(DataError, OSError):
            image = decode_image(root / mistake.path, options=options)
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            caption = f"{number}: {mistake.actual}, predicted {mistake.predicted}"
            pictures.append(Picture(image, caption))
            rows.append(
                [
                    number,
                    mistake.path,
                    mistake.actual,
                    mistake.predicted,
                    mistake.predicted_probability,
                    mistake.actual_probability,
                ]
            )
    return pictures, TrackedTable(_COLUMNS, rows)
