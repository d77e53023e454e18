"""Paired comparison of two classifiers on the same images: differences with 95% intervals."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.significance import compute_mcnemar_p_value

# shape suffixes: N images, K classes, R resamples, G groups

NUM_RESAMPLES = 2_000
"""Bootstrap resamples: the ends of an interval vary by about 2% of its width between seeds."""

_MAX_CELLS = 4_000_000
"""Size of the largest temporary array."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A metric of two models on the same images, and the difference.

    Attributes:
        metric: "accuracy", "macro_f1" or "loss" (the log loss).
        before: The metric of the first model.
        after: The metric of the second model.
        difference: ``after - before``.
        low: Lower end of the 95% interval of the difference.
        high: Upper end.
    """

    metric: str
    before: float
    after: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Judgement of the second model: "better", "worse", or "no difference beyond chance"."""
        if self.low <= 0 <= self.high:
            return "no difference beyond chance"
        is_gain = (self.difference < 0) == (self.metric == "loss")
        return "better" if is_gain else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same images.

    Attributes:
        num_images: Number of images.
        num_only_first: Images that only the first model classifies correctly.
        num_only_second: Images that only the second model does.
        mcnemar_p_value: Two-sided p-value of the exact McNemar test.
        differences: Differences by metric.
    """

    num_images: int
    num_only_first: int
    num_only_second: int
    mcnemar_p_value: float
    differences: Mapping[str, PairedDifference]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": self.num_images,
            "num_only_first_correct": self.num_only_first,
            "num_only_second_correct": self.num_only_second,
            "mcnemar_p_value": self.mcnemar_p_value,
            "differences": {name: value.to_json() for name, value in self.differences.items()},
        }


def compare_paired(
    before_NK: NDArray[np.floating[Any]],
    after_NK: NDArray[np.floating[Any]],
    target_N: NDArray[np.int64],
    *,
    seed: int,
    groups_N: NDArray[np.int64] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Compare the class probabilities of two models for the same images.

    The interval of the accuracy is that of Bonett and Price (2012,
    https://doi.org/10.3102/1076998611411915), which keeps its coverage where few images differ and
    none of the models errs. Those of macro F1 and of the log loss are percentiles of a paired
    bootstrap over the images (Efron 1979). With groups, whole groups are resampled, for the
    accuracy, too: images of a group are not independent.

    Args:
        before_NK: Probabilities of the first model, shape (N, K), rows sum to 1.
        after_NK: Probabilities of the second model, shape (N, K).
        target_N: True class indices in [0, K), shape (N,).
        seed: Seed of the bootstrap.
        groups_N: Group of each image, shape (N,); None if the images are independent.
        num_resamples: Number of bootstrap resamples.

    Raises:
        ValueError: There are no images.
    """
    if len(target_N) == 0:
        raise ValueError("a comparison needs at least one image")
    num_classes = before_NK.shape[1]
    predicted = (before_NK.argmax(axis=1), after_NK.argmax(axis=1))
    correct = [prediction == target_N for prediction in predicted]
    losses = [_compute_losses(table, target_N) for table in (before_NK, after_NK)]
    rows = None if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
    resampled: dict[str, list[NDArray[np.float64]]] = {"accuracy": [], "macro_f1": [], "loss": []}
    for weights_RN in iterate_resamples(len(target_N), rows, seed, num_resamples, num_classes):
        totals_R = weights_RN.sum(axis=1)
        for name, values in (("accuracy", correct), ("loss", losses)):
            change_N = values[1].astype(float) - values[0].astype(float)
            resampled[name].append(weights_RN @ change_N / totals_R)
        scores = [_compute_macro_f1(weights_RN, p, target_N, num_classes) for p in predicted]
        resampled["macro_f1"].append(scores[1] - scores[0])
    ones_1N = np.ones((1, len(target_N)))
    f1 = [float(_compute_macro_f1(ones_1N, p, target_N, num_classes)[0]) for p in predicted]
    points = {
        "accuracy": (float(correct[0].mean()), float(correct[1].mean())),
        "macro_f1": (f1[0], f1[1]),
        "loss": (float(losses[0].mean()), float(losses[1].mean())),
    }
    intervals = {name: compute_percentiles(np.concatenate(v)) for name, v in resampled.items()}
    only_first, only_second = (
        int((correct[one] & ~correct[other]).sum()) for one, other in ((0, 1), (1, 0))
    )
    if rows is None or rows.max() + 1 == len(rows):
        intervals["accuracy"] = compute_bonett_price_interval(
            only_first, only_second, len(target_N)
        )
    return PairedComparison(
        len(target_N),
        only_first,
        only_second,
        compute_mcnemar_p_value(correct[0], correct[1]),
        {
            name: PairedDifference(name, before, after, after - before, *intervals[name])
            for name, (before, after) in points.items()
        },
    )


def compute_bonett_price_interval(
    num_only_first: int, num_only_second: int, total: int
) -> tuple[float, float]:
    """Compute the 95% interval of the difference of two paired proportions, second minus first.

    Adjusted Wald interval of Bonett and Price (2012, https://doi.org/10.3102/1076998611411915).

    Args:
        num_only_first: Images that only the first model classifies correctly.
        num_only_second: Images that only the second model does.
        total: Number of images, at least 1.
    """
    first, second = ((count + 1) / (total + 2) for count in (num_only_first, num_only_second))
    center = second - first
    half = _Z * math.sqrt((first + second - center**2) / (total + 2))
    return max(-1.0, center - half), min(1.0, center + half)


def _compute_losses(table_NK: NDArray[Any], target_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log loss of each image, clamped as in ``metrics.log_loss``, shape (N,)."""
    likelihood_N = table_NK[np.arange(len(target_N)), target_N].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(likelihood_N, np.finfo(np.float32).tiny))
    return losses


def iterate_resamples(
    num_images: int,
    rows_N: NDArray[np.int64] | None,
    seed: int,
    num_resamples: int,
    num_classes: int,
) -> Iterator[NDArray[np.float64]]:
    """Yield the counts of the images in bootstrap resamples, float64, shape (R, N)."""
    random = np.random.default_rng(seed)
    num_units = num_images if rows_N is None else int(rows_N.max()) + 1
    size = max(1, min(num_resamples, _MAX_CELLS // max(num_images, num_classes)))
    for first in range(0, num_resamples, size):
        draws_RG = np.stack(
            [
                np.bincount(random.integers(0, num_units, num_units), minlength=num_units)
                for _ in range(min(size, num_resamples - first))
            ]
        )
        yield (draws_RG if rows_N is None else draws_RG[:, rows_N]).astype(np.float64)


def _compute_macro_f1(
    weights_RN: NDArray[np.float64],
    predicted_N: NDArray[np.int64],
    target_N: NDArray[np.int64],
    num_classes: int,
) -> NDArray[np.float64]:
    """Return the macro F1 of weighted images, over the classes present or predicted, shape (R,)."""
    total_R = np.zeros(len(weights_RN))
    defined_R = np.zeros(len(weights_RN))
    for label in range(num_classes):
        is_predicted, is_label = predicted_N == label, target_N == label
        hits_R = weights_RN @ (is_predicted & is_label)
        size_R = weights_RN @ is_predicted + weights_RN @ is_label
        is_defined_R = size_R > 0
        total_R += np.divide(2 * hits_R, size_R, out=np.zeros_like(size_R), where=is_defined_R)
        defined_R += is_defined_R
    scores: NDArray[np.float64] = total_R / defined_R
    return scores


def compute_percentiles(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% interval of a statistic from its resampled values, shape (R,).

    Resamples that do not define the statistic, with the value nan, are left out.
    """
    low, high = np.percentile(values_R[~np.isnan(values_R)], (2.5, 97.5))
    return float(low), float(high)
