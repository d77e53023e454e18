"""Sums over the steps of an epoch that is not finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EpochSums:
    """Sums of an unfinished epoch on one rank.

    Attributes:
        loss_sum: Sum of the losses of the batches.
        num_batches: Number of batches in the sum.
        learning_rates: Learning rate of each layer group at the epoch's last batch; empty before.
        grad_norm_sums: Sum of the gradient norms of each layer group; empty if there are none.
        grad_norm_counts: Number of steps in each of these sums.
    """

    loss_sum: float = 0.0
    num_batches: int = 0
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    grad_norm_sums: Sequence[float] = ()
    grad_norm_counts: Sequence[float] = ()
