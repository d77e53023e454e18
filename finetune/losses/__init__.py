"""Losses and class weights as pure functions, and the registries of both.

Each loss is a mean over the batch, so that ranks and accumulated batches average to the value of
the whole batch, and is linear in its target: the loss of a soft label is the mean of the losses of
the classes, weighted by their probabilities, so that a mixture of two images has the mixture of
their losses. A class weight multiplies the loss of its label. With weights whose mean over the
training set is 1, as those computed here, the average over ranks or accumulated batches equals the
value of the whole batch; torch's weighted mean, which divides by the batch's own sum of weights,
does not have this property.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from finetune.losses.binary import asymmetric, bce, compute_positive_weights
from finetune.losses.class_weights import (
    CLASS_WEIGHTS,
    compute_balanced_class_weights,
    compute_effective_number_class_weights,
)
from finetune.losses.cross_entropy import (
    compute_prior_offset,
    cross_entropy,
    focal,
    logit_adjusted,
)
from finetune.losses.margin import hinge, ldam, squared_hinge
from finetune.losses.squared_error import mse
from finetune.types import SCORE_LOSSES

LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "logit_adjusted": logit_adjusted,
    "ldam": ldam,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "mse": mse,
    "bce": bce,
    "asymmetric": asymmetric,
}
"""Losses by name, called with ``logits, target``, and with ``class_counts_K``, ``class_weights_K``
and ``label_smoothing`` if they take them."""

MULTI_LABEL_LOSSES = ("bce", "asymmetric")
"""Losses of images with any number of labels, which take targets of shape (B, K)."""

__all__ = [
    "CLASS_WEIGHTS",
    "LOSSES",
    "MULTI_LABEL_LOSSES",
    "SCORE_LOSSES",
    "asymmetric",
    "bce",
    "compute_balanced_class_weights",
    "compute_effective_number_class_weights",
    "compute_positive_weights",
    "compute_prior_offset",
    "cross_entropy",
    "focal",
    "hinge",
    "ldam",
    "logit_adjusted",
    "mse",
    "squared_hinge",
]
