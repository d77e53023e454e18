"""Mean, spread and confidence interval of a metric over the folds of a cross-validation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

METHOD = (
    "mean over the folds; 95% interval by the corrected resampled t-test (Nadeau and Bengio 2003), "
    "and for the accuracy at least Wilson's interval of all held-out images"
)
"""How the statistics are computed, as it stands in files."""

LABEL_METHOD = (
    "mean over the folds; 95% interval by the corrected resampled t-test (Nadeau and Bengio 2003), "
    "and at least as wide as that of a bootstrap over all held-out images, which macro F1 has only "
    "if each label is in 10 of them or more, mean average precision if it is in 20 or more, and no "
    "metric of more than 666,666 pairs of image and label; F1 and subset accuracy of a fold at "
    "thresholds chosen on the other folds"
)
"""The same of multi-label images."""

THRESHOLDS_KEY = "thresholds_chosen_on"
"""Key of what chose the thresholds at which labels are counted, where that needs saying."""

OTHER_FOLDS = "other_folds"
"""Value of that key: the thresholds of each fold were chosen on the images of the others."""

ALL_FOLDS = "all_folds"
"""Value of that key in the facts of a model: the held-out images of all folds chose its own."""


@dataclass(frozen=True, slots=True)
class FoldStatistics:
    """Statistics of a metric over folds.

    Attributes:
        mean: Mean of the folds.
        std: Standard deviation of the folds, with K - 1 degrees of freedom.
        interval: 95% confidence interval of the mean; None where all folds have the same value,
            which says nothing of others, and for metrics of the same images in all folds.
        values: Value of each fold; None where its images do not define the metric.
    """

    mean: float
    std: float
    interval: tuple[float, float] | None
    values: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        interval = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": interval, "values": list(self.values)}


def compute_fold_statistics(
    values: Sequence[float | None],
    *,
    test_fraction: float | None,
    bounds: tuple[float, float] = (0.0, math.inf),
    floor: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> FoldStatistics | None:
    """Compute mean, standard deviation and confidence interval of a metric over folds.

    The folds share training images, so that their values are not independent, and the variance of
    the mean is larger than the variance of the folds divided by their number. The corrected
    resampled t-test (Nadeau and Bengio 2003, https://doi.org/10.1023/A:1024068626366, eq. 9)
    multiplies it by 1 / K + held-out / training images in place of 1 / K. No estimator of this
    variance is unbiased for all data (Bengio and Grandvalet 2004); this one was made for random
    splits, and is rather wide for folds, which do not share held-out images.

    Args:
        values: Value of each of K folds; None where it is undefined.
        test_fraction: Held-out images of a fold divided by its training images; None for metrics of
            the same images in all folds, whose mean has no such interval.
        bounds: Smallest and largest possible value, at which the interval ends.
        floor: Interval that the number of held-out images alone would give; the result covers it,
            as folds of few images may agree by chance. None for none.
        confidence: Nominal coverage, in (0, 1).

    Returns:
        The statistics; None with fewer than two defined values.
    """
    from scipy.stats import t as student_t  # imports for half a second

    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    mean, std = fmean(known), stdev(known)
    quantile = float(student_t.ppf(0.5 + confidence / 2, len(known) - 1))
    interval = None
    if test_fraction is not None and std > 0:
        half = quantile * std * math.sqrt(1 / len(known) + test_fraction)
        interval = max(bounds[0], mean - half), min(bounds[1], mean + half)
    if floor is not None:
        low, high = interval or floor
        interval = min(low, floor[0]), max(high, floor[1])
    return FoldStatistics(mean, std, interval, tuple(values))
