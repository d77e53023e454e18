"""Strength of post-hoc logit adjustment, chosen on held-out images.

Adjusting logits in full to a uniform class prior (Menon et al. 2021, https://arxiv.org/abs/2007.07314)
raises balanced accuracy, and lowers accuracy and often macro-F1 on images with the class
frequencies of training. With a strength between 0 and 1 it can raise macro-F1 without a loss of
accuracy.

Macro-F1 of few images of rare classes is noisy: one image moves it by points. It is therefore
estimated from the calibrated probabilities of all images, as its expected value, and the smallest
strength is taken that is not clearly worse than the best, in the manner of the one-standard-error
rule (Breiman et al. 1984, section 3.4.3).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.evaluation.metrics import evaluate_probabilities

# shape suffixes: N images, K classes

STRENGTHS = tuple(step / 20 for step in range(21))
"""Strengths to choose from, ascending."""

MAX_STANDARD_ERRORS = 0.5
"""Difference of a metric, in standard errors, that is no clear difference.

Compared with other rules by ``scripts/benchmarks/imbalance.py``.
"""

REPORTED_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True, slots=True)
class StrengthChoice:
    """Strength of the adjustment and its effect on the images that it was chosen on.

    Attributes:
        strength: Chosen strength, in [0, 1].
        metric: Metric that it was chosen for.
        gain: Expected gain in this metric over a strength of 0.
        standard_error: Standard error of the gain.
        num_images: Number of images.
        before: Accuracy, balanced accuracy and macro-F1 of the images without adjustment.
        after: The same at the chosen strength.
        full: The same at a strength of 1.
    """

    strength: float
    metric: str
    gain: float
    standard_error: float
    num_images: int
    before: dict[str, float]
    after: dict[str, float]
    full: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def choose_strength(
    logits_NK: Tensor,
    target_N: Tensor,
    shift_K: Tensor,
    *,
    metric: str,
    label_shift: Tensor | None = None,
    groups: NDArray[np.int64] | None = None,
) -> StrengthChoice:
    """Choose the smallest strength whose metric is not clearly below that of the best one.

    The metric is the expected one under the calibrated probabilities. The labels have a veto: no
    strength is taken that clearly lowers the metric of the labelled images. The standard error of
    the difference between two strengths is that of a sum over independent groups of images, by the
    infinitesimal jackknife (Efron 1982, section 6.3).

    Args:
        logits_NK: Calibrated logits of images that the model was not fitted to, shape (N, K).
        target_N: True class indices in [0, K), int64, shape (N,).
        shift_K: Logit adjustment at a strength of 1, shape (K,); classes at minus infinity are
            never predicted.
        metric: "accuracy", "balanced_accuracy", "macro_f1" or "loss".
        label_shift: Logit adjustment to the class prior of these images, shape (K,); None if the
            logits assume it.
        groups: Groups of dependent images, such as duplicates, in the form of ``encode_groups``,
            shape (N,); None if every image is independent.
    """
    logits_NK, num_images = logits_NK.double(), len(target_N)
    groups_N = np.arange(num_images) if groups is None else groups
    expected_NK = (logits_NK if label_shift is None else logits_NK + label_shift).softmax(dim=1)
    actual_NK = one_hot(target_N, logits_NK.shape[1]).double()
    expected: list[tuple[float, Tensor]] = []
    actual: list[tuple[float, Tensor]] = []
    for strength in STRENGTHS:
        probabilities_NK = adjust_logits(logits_NK, shift_K, strength=strength).softmax(dim=1)
        expected.append(compute_soft_metric(probabilities_NK, expected_NK, metric))
        actual.append(compute_soft_metric(probabilities_NK, actual_NK, metric))

    def is_clearly_worse(values: list[tuple[float, Tensor]], one: int, other: int) -> bool:
        loss = values[other][0] - values[one][0]
        error = _compute_standard_error(values[other][1] - values[one][1], groups_N)
        return loss > MAX_STANDARD_ERRORS * error

    best = max(range(len(STRENGTHS)), key=lambda index: expected[index][0])
    chosen = next(i for i in range(best + 1) if not is_clearly_worse(expected, i, best))
    chosen = max(i for i in range(chosen + 1) if not is_clearly_worse(actual, i, 0))
    before, after, full = (
        _evaluate(adjust_logits(logits_NK, shift_K, strength=strength), target_N)
        for strength in (0.0, STRENGTHS[chosen], 1.0)
    )
    return StrengthChoice(
        strength=STRENGTHS[chosen],
        metric=metric,
        gain=expected[chosen][0] - expected[0][0],
        standard_error=_compute_standard_error(expected[chosen][1] - expected[0][1], groups_N),
        num_images=num_images,
        before=before,
        after=after,
        full=full,
    )


def adjust_logits(logits_NK: Tensor, shift_K: Tensor, *, strength: float) -> Tensor:
    """Return logits plus a fraction of the shift; unchanged at 0, whatever the shift."""
    return logits_NK if strength == 0 else logits_NK + strength * shift_K.to(logits_NK.dtype)


def compute_soft_metric(
    probabilities_NK: Tensor, soft_NK: Tensor, metric: str
) -> tuple[float, Tensor]:
    """Compute a metric with soft labels, larger is better, and the influence of each image on it.

    Args:
        probabilities_NK: Class probabilities, shape (N, K).
        soft_NK: Soft labels, not negative, rows sum to 1, float64, shape (N, K).
        metric: "accuracy", "balanced_accuracy", "macro_f1" or "loss", which is negated.

    Returns:
        The metric, averaged over all K classes, and its derivative with respect to the weight of
        each image, at weights of 1, shape (N,).
    """
    num_images, num_classes = probabilities_NK.shape
    if metric == "loss":
        tiny = torch.finfo(torch.float32).tiny
        values_N = (soft_NK * probabilities_NK.clamp_min(tiny).log()).sum(dim=1)
        return float(values_N.mean()), (values_N - values_N.mean()) / num_images
    predicted_N = probabilities_NK.argmax(dim=1)
    hit_N = soft_NK.gather(1, predicted_N[:, None])[:, 0]
    if metric == "accuracy":
        return float(hit_N.mean()), (hit_N - hit_N.mean()) / num_images
    support_K = soft_NK.sum(dim=0)
    hits_K = torch.bincount(predicted_N, hit_N, minlength=num_classes)
    if metric == "balanced_accuracy":
        support_K = support_K.clamp_min(1e-12)
        recall_K = hits_K / support_K
        influence_N = hit_N / support_K[predicted_N] - soft_NK @ (recall_K / support_K)
        return float(recall_K.mean()), influence_N / num_classes
    assert metric == "macro_f1", metric
    total_K = support_K + torch.bincount(predicted_N, minlength=num_classes)
    total_K = total_K.clamp_min(1e-12)
    f1_K = 2 * hits_K / total_K
    per_image_K = f1_K / total_K
    influence_N = (
        2 * hit_N / total_K[predicted_N] - soft_NK @ per_image_K - per_image_K[predicted_N]
    )
    return float(f1_K.mean()), influence_N / num_classes


def _compute_standard_error(influence_N: Tensor, groups_N: NDArray[np.int64]) -> float:
    """Return the standard error of a metric from the influence of each image."""
    return float(np.sqrt(np.square(np.bincount(groups_N, influence_N.numpy())).sum()))


def _evaluate(logits_NK: Tensor, target_N: Tensor) -> dict[str, float]:
    classes = tuple(map(str, range(logits_NK.shape[1])))
    evaluation = evaluate_probabilities(logits_NK.softmax(dim=1), target_N, classes=classes)
    return {name: float(evaluation.metrics[name]) for name in REPORTED_METRICS}
