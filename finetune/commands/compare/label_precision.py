"""Mean average precision of a multi-label probe in resamples of the validation images.

Every backbone is scored on the same resamples, so that the differences between two of them are
those of a paired bootstrap (Efron 1979).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.multi_label.paired_labels import compute_weighted_means
from finetune.evaluation.paired_comparison import (
    NUM_RESAMPLES,
    compute_percentiles,
    iterate_resamples,
)
from finetune.evaluation.significance import compute_wilson_interval

# shape suffixes: N images, K labels, R resamples

_SEED = 0

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, eq=False)
class LabelPrecision:
    """Mean average precision of a backbone's probe.

    Attributes:
        value: On the validation images.
        resampled: In each resample of them, shape (R,); nan in those without any label, which say
            nothing.
        num_labelled: Number of validation images with a label.
    """

    value: float
    resampled: NDArray[np.float64]
    num_labelled: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the value, from the spread of the resampled logits of it.

        Percentiles of the resampled values would be too high, as an image that is drawn twice ranks
        beside itself. Of a perfect or worst order, which has no spread, the interval is Wilson's of
        as many trials as images with a label.
        """
        if not 0 < self.value < 1:
            right = round(self.value * self.num_labelled)
            return compute_wilson_interval(right, self.num_labelled)
        center = math.log(self.value / (1 - self.value))
        # the derivative of the logit, for the spread of the logits
        half = _Z * float(np.nanstd(self.resampled)) / (self.value * (1 - self.value))
        low, high = (1 / (1 + math.exp(-(center + sign * half))) for sign in (-1, 1))
        return low, high

    def compute_difference_interval(self, other: "LabelPrecision") -> tuple[float, float]:
        """Compute the 95% interval of this value less that of another backbone."""
        return compute_percentiles(self.resampled - other.resampled)

    def compute_p_value(self, other: "LabelPrecision") -> float:
        """Compute the two-sided p-value of the difference from another backbone.

        That is twice the fraction of resamples in which the sign of the difference is not that of
        most; one resample more counts as such (Davison and Hinkley 1997, section 4.2), so that the
        value is at least 0.001. Resamples without any label are left out.
        """
        change_R = self.resampled - other.resampled
        change_R = change_R[~np.isnan(change_R)]
        fewer = min(int((change_R <= 0).sum()), int((change_R >= 0).sum()))
        return min(1.0, 2 * (fewer + 1) / (len(change_R) + 1))


def measure_label_precision(
    probabilities_NK: NDArray[np.float64],
    is_true_NK: NDArray[np.bool_],
    *,
    groups_N: NDArray[np.int64],
    value: float,
) -> LabelPrecision:
    """Measure the mean average precision in resamples of the images.

    Whole groups are resampled. In a resample without an image with a label, the mean is over the
    other labels; without any label it is nan.

    Args:
        probabilities_NK: Probability of each label, shape (N, K).
        is_true_NK: Whether each image has each label, shape (N, K).
        groups_N: Group of each image, in the form of ``encode_groups``, shape (N,).
        value: Mean average precision of the images.
    """
    rows_N = np.unique(groups_N, return_inverse=True)[1]
    num_images, num_labels = is_true_NK.shape
    parts = [
        compute_weighted_means(probabilities_NK, is_true_NK, weights_RN)
        for weights_RN in iterate_resamples(num_images, rows_N, _SEED, NUM_RESAMPLES, num_labels)
    ]
    return LabelPrecision(value, np.concatenate(parts), int(is_true_NK.any(axis=1).sum()))
