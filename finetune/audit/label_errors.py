"""Label errors, estimated from out-of-sample class probabilities.

Confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068): an image is
counted to a class if the class's probability reaches its mean over the images labelled with it; the
label is a likely error if that is another class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.multi_label.multi_hot import encode_multi_hot
from finetune.types import Sample
from finetune.units import format_count, format_percent

_CHANCE_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class LabelErrorCandidate:
    """An image whose label is probably wrong.

    Attributes:
        path: Path of the image.
        label: Class with which it is labelled.
        predicted_label: Class that it probably belongs to.
        label_probability: Out-of-sample probability of ``label``, in [0, 1].
        predicted_probability: Out-of-sample probability of ``predicted_label``, in [0, 1].
    """

    path: str
    label: str
    predicted_label: str
    label_probability: float
    predicted_probability: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields with probabilities rounded to four decimals."""
        return {
            "path": self.path,
            "label": self.label,
            "label_probability": round(self.label_probability, 4),
            "predicted_label": self.predicted_label,
            "predicted_probability": round(self.predicted_probability, 4),
        }


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """Classifier that label errors follow from: how often it predicts a label as given.

    Attributes:
        num_images: Number of images whose labels were compared with its predictions.
        accuracy: Fraction of them that it predicts as labelled; of images with any number of
            labels, the fraction of labels.
    """

    num_images: int
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields with the accuracy rounded to four decimals."""
        return {"num_images": self.num_images, "accuracy": round(self.accuracy, 4)}


def measure_label_check(
    samples: Sequence[Sample], classes: Sequence[str], probabilities: NDArray[np.floating]
) -> LabelCheck | None:
    """Return how often probabilities agree with the labels; None without images.

    Args:
        samples: N images.
        classes: Names in index order.
        probabilities: As for ``collect_label_errors``.
    """
    if not samples:
        return None
    if any(sample.labels is not None for sample in samples):
        is_right = (probabilities > 0.5) == (encode_multi_hot(samples, classes) > 0)
    else:
        index = {name: number for number, name in enumerate(classes)}
        labels = np.array([index[sample.label] for sample in samples], np.int64)
        is_right = probabilities.argmax(axis=1) == labels
    return LabelCheck(len(samples), float(is_right.mean()))


def describe_label_check(
    check: Mapping[str, Any] | None, *, judges: str = "heads", is_multi_label: bool = False
) -> str:
    """Return how far label errors can be trusted, by the accuracy of what contradicts them.

    Empty where it is unknown, as in audits of earlier releases.

    Args:
        check: ``LabelCheck`` as JSON values.
        judges: Plural of what has predicted the images.
        is_multi_label: Whether the images have any number of labels.
    """
    if not check:
        return ""
    images = format_count(check["num_images"], "image")
    what = f"the labels of {images}" if is_multi_label else images
    return f"{judges} that predict {format_percent(check['accuracy'])} of {what} as labelled"


def collect_label_errors(
    samples: Sequence[Sample], classes: Sequence[str], probabilities: NDArray[np.floating]
) -> tuple[LabelErrorCandidate, ...]:
    """Return the images whose labels are probably wrong, the most likely errors first.

    There are none where the probabilities are no better than chance, see
    ``is_better_than_chance``.

    Args:
        samples: N images.
        classes: Names in index order.
        probabilities: Out-of-sample class probabilities, shape (N, K); rows sum to 1, unless the
            images have any number of labels: each is then judged by itself.
    """
    if any(sample.labels is not None for sample in samples):
        return _collect_multi_label_errors(samples, classes, probabilities)
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[sample.label] for sample in samples], np.int64)
    if not is_better_than_chance(probabilities, labels):
        return ()
    rows, predicted = find_label_errors(probabilities, labels)
    return tuple(
        LabelErrorCandidate(
            samples[row].path,
            samples[row].label,
            classes[other],
            float(probabilities[row, labels[row]]),
            float(probabilities[row, other]),
        )
        for row, other in zip(rows.tolist(), predicted.tolist(), strict=True)
    )


def _collect_multi_label_errors(
    samples: Sequence[Sample], classes: Sequence[str], probabilities: NDArray[np.floating]
) -> tuple[LabelErrorCandidate, ...]:
    """Return the images of which a label is probably missing or wrong, the most likely first.

    Each label is a question with two answers, named "dog" and "no dog".
    """
    targets = encode_multi_hot(samples, classes).astype(np.int64)
    found = []
    for column, name in enumerate(classes):
        p, answers = probabilities[:, column].astype(np.float64), (f"no {name}", name)
        pair = np.stack([1 - p, p], axis=1)
        if not is_better_than_chance(pair, targets[:, column]):
            continue
        rows, predicted = find_label_errors(pair, targets[:, column])
        for row, other in zip(rows.tolist(), predicted.tolist(), strict=True):
            own_p, other_p = (1 - p[row], p[row]) if other else (p[row], 1 - p[row])
            found.append(
                LabelErrorCandidate(
                    samples[row].path, answers[1 - other], answers[other], own_p, other_p
                )
            )
    return tuple(sorted(found, key=lambda one: one.label_probability - one.predicted_probability))


def is_better_than_chance(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> bool:
    """Return whether labels are more probable than they would be if they were permuted.

    Their mean probability has to exceed that of permuted labels by three standard deviations, by
    the exact mean and variance of a permutation test (Hoeffding 1951,
    https://doi.org/10.1214/aoms/1177729545). It needs no threshold, and classes of any frequency.

    Args:
        probabilities: Out-of-sample class probabilities, shape (N, K).
        labels: Class indices in [0, K), shape (N,).
    """
    num_images, num_classes = probabilities.shape
    if num_images < 2:
        return False
    p_NK = probabilities.astype(np.float64)
    counts_K = np.bincount(labels, minlength=num_classes)
    expected_N = p_NK @ counts_K / num_images
    means_K = p_NK.mean(axis=0)
    gain = p_NK[np.arange(num_images), labels].sum() - expected_N.sum()
    centred_NK = p_NK - expected_N[:, None] - means_K + expected_N.mean()
    variance = (centred_NK**2 @ counts_K).sum() / (num_images - 1)
    return bool(gain > _CHANCE_DEVIATIONS * np.sqrt(variance))


def find_label_errors(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images whose labels are probably wrong, and their predicted classes.

    A class that is less probable than the label is never predicted.

    The thresholds are the mean probability of each class over the images labelled with it, so that
    a class of which the classifier is rarely certain is not flagged for that. The images are ranked
    by the difference of the two probabilities (the paper's normalised margin), the largest first.

    Args:
        probabilities: Out-of-sample class probabilities, shape (N, K); rows sum to 1.
        labels: Class indices in [0, K), shape (N,).

    Returns:
        Rows (M,) and class indices (M,).
    """
    num_images, num_classes = probabilities.shape
    own = probabilities[np.arange(num_images), labels]
    count = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, weights=own, minlength=num_classes)
    # no probability reaches the threshold of a class without images
    thresholds = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    # the threshold of a class of few images may be so low that the images of all others reach it
    exceeds_own = probabilities > own[:, None]
    confident = np.where((probabilities >= thresholds) & exceeds_own, probabilities, -1.0)
    predicted = confident.argmax(axis=1)
    highest = confident.max(axis=1)
    rows = np.flatnonzero((highest >= 0) & (predicted != labels))
    order = np.argsort(own[rows] - highest[rows], kind="stable")
    return rows[order], predicted[rows[order]]
