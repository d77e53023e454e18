"""Losses that are not finite in one step, on all ranks or on one."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

FAULTY_CALL = 5
"""Call of the loss, from 1, that is faulty: with three steps an epoch, step 2 of epoch 2."""


class FaultyLoss:
    """Cross-entropy with a fault in one of its calls.

    Args:
        fault: "loss" is NaN with its gradients, "gradient" has infinite gradients alone, and
            "value" has the value NaN but ordinary gradients.
        call: The faulty call, from 1.
        rank: Rank with the fault; None for every rank.
    """

    def __init__(self, fault: str, *, call: int = FAULTY_CALL, rank: int | None = None) -> None:
        self.fault = fault
        self.call = call
        self.rank = rank
        self.num_calls = 0

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits (B, K) and class indices (B,)."""
        self.num_calls += 1
        loss = cross_entropy(logits, target)
        is_other_rank = self.rank is not None and self.rank != torch.distributed.get_rank()
        if self.num_calls != self.call or is_other_rank:
            return loss
        if self.fault == "loss":
            return loss * math.nan
        if self.fault == "gradient":
            return loss + (logits.sum() * 0).sqrt()  # 0, with an infinite slope
        return loss + torch.tensor(math.nan)


nan_on_rank_1 = FaultyLoss("loss", rank=1)
nan_value_on_rank_1 = FaultyLoss("value", rank=1)
