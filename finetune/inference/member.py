"""Part of a model, or of an ensemble, in the logits and probabilities of a predictor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.ensemble_card import get_class_order
from finetune.bundle.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class Member:
    """Network whose probabilities are averaged, and its part of the views and logits.

    Attributes:
        network: Network on the device.
        card: Its card.
        weight: Weight of its probabilities.
        logits: Its columns V in the logits (N, V, K).
        views: Views that it sees, as indices of the boxes of its view stack.
        order: Index of each class of the ensemble in its own order; None for the same order.
        shift: Adjustment of its calibrated logits in the order of the ensemble, shape (K,).
    """

    network: nn.Module
    card: ModelCard
    weight: float
    logits: range
    views: range
    order: Tensor | None
    shift: Tensor | None


def build_member(
    bundle: ModelBundle, weight: float, views: range, *, first: int, classes: Sequence[str]
) -> Member:
    """Return a member whose logits start at column ``first``."""
    order = get_class_order(bundle.card, classes)
    shift = bundle.card.shift
    return Member(
        bundle.network,
        bundle.card,
        weight,
        range(first, first + len(views)),
        views,
        order=None if order == list(range(len(order))) else torch.tensor(order),
        shift=None if shift is None else torch.tensor(shift)[order],
    )


def compute_view_mean(logits: Tensor, member: Member) -> Tensor:
    """Return the mean probabilities, shape (N, K), of a member's views, logits (N, V, K)."""
    scaled = logits / member.card.temperature
    if member.shift is not None:
        scaled = scaled + member.shift
    if member.card.is_multi_label:  # too close to 0 or 1 for float32
        return scaled.double().sigmoid().mean(dim=1)
    return scaled.softmax(dim=2).mean(dim=1)
