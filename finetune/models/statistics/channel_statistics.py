"""Statistics of the outputs of a layer by channel, added up over batches."""

import torch
from torch import Tensor

from finetune.models.statistics.activation_kinds import DEATH_RULES, find_flat

MAX_CHANNELS = 128
"""Channels whose correlations are computed; of more channels, they are evenly spaced."""

MAX_POSITIONS = 64
"""Positions of an image whose correlations are computed; of more, they are evenly spaced."""

CORRELATED = 0.9
"""Absolute correlation above which two feature maps count as alike."""

_SMALL = 0.01
"""Largest output of a dead unit beside the root mean square of its layer."""

_SATURATED = 0.95
"""Fraction of a unit's outputs at a flat end from which it counts as saturated."""


class ChannelStatistics:
    """Sums over the outputs of a layer, and what follows from them.

    Args:
        kind: Kind of the activation, or another name for what is no activation.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._count = 0
        self._mean = self._square_sum = self._largest = self._flat = torch.zeros(0)
        # of the channels whose correlations are computed, as deviations from a value near the mean
        self._shift = self._sums = self._products = torch.zeros(0)
        self._num_rows = 0

    def update(self, values: Tensor) -> None:
        """Add outputs of shape (B, positions, C).

        Sums are kept in float64; where a later batch has other numbers of channels, it is left out.
        """
        values = values.detach().float()
        batch, positions, channels = values.shape
        if self._count and channels != len(self._mean):
            return
        flat = find_flat(self.kind, values)
        values_SC = values.reshape(-1, channels)
        variance, mean = torch.var_mean(values_SC, dim=0, correction=0)
        self._merge(mean.double().cpu(), variance.double().cpu(), batch * positions)
        largest = values_SC.abs().amax(dim=0).cpu()
        self._largest = torch.maximum(self._largest, largest) if len(self._largest) else largest
        if flat is not None:
            count = flat.expand_as(values).sum(dim=(0, 1)).cpu()
            self._flat = self._flat + count if len(self._flat) else count
        self._add_products(values)

    def _add_products(self, values: Tensor) -> None:
        """Add the sums and products of evenly spaced channels at evenly spaced positions."""
        _, positions, channels = values.shape
        columns = _space_evenly(channels, MAX_CHANNELS).to(values.device)
        kept = values[:, _space_evenly(positions, MAX_POSITIONS).to(values.device)][..., columns]
        rows_SC = kept.reshape(-1, len(columns)).cpu().double()
        if self._num_rows == 0:
            self._shift = rows_SC.mean(dim=0)
            self._sums, self._products = torch.zeros(2, 1).double()
        rows_SC -= self._shift
        self._num_rows += len(rows_SC)
        self._sums = self._sums + rows_SC.sum(dim=0)
        self._products = self._products + rows_SC.T @ rows_SC

    def _merge(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Add the moments of a batch (Chan et al. 1983, eq. 2.1)."""
        if self._count == 0:
            self._count, self._mean, self._square_sum = count, mean, variance * count
            return
        total, delta = self._count + count, mean - self._mean
        self._mean = self._mean + delta * count / total
        self._square_sum = (
            self._square_sum + variance * count + delta**2 * self._count * count / total
        )
        self._count = total

    @property
    def num_channels(self) -> int:
        """The number of channels."""
        return len(self._mean)

    def compute_dead_fraction(self) -> float | None:
        """Return the fraction of units whose output never matters; None where none can die."""
        rule = DEATH_RULES.get(self.kind, "never")
        if rule == "never":
            return None
        if rule == "zero":
            return float((self._largest == 0).double().mean())
        scale = (self._square_sum / self._count + self._mean**2).mean().sqrt()
        return float((self._largest <= _SMALL * scale).double().mean())

    def compute_saturated_fraction(self) -> float | None:
        """Return the fraction of units that are flat nearly always; None where none can be."""
        if not len(self._flat):
            return None
        return float((self._flat >= _SATURATED * self._count).double().mean())

    def compute_deviation(self) -> float:
        """Return the root mean square over channels of their standard deviations."""
        return float((self._square_sum / self._count).mean().sqrt())

    def compute_correlations(self) -> tuple[float, float] | None:
        """Return the mean absolute correlation of pairs of channels, and the fraction above 0.9.

        Channels that do not vary have no correlation. None with fewer than two others, or of a
        softmax, whose positions are no feature maps.
        """
        if self.kind == "softmax":
            return None
        means = self._sums / self._num_rows
        covariances = self._products / self._num_rows - means[:, None] * means
        deviations = covariances.diagonal().clamp_min(0).sqrt()
        # smaller ones are rounding errors of float32
        varying = deviations > 1e-6 * (self._shift.abs() + deviations.max())
        if not torch.isfinite(deviations).all() or int(varying.sum()) < 2:
            return None
        scales = deviations[varying]
        correlations = (covariances[varying][:, varying] / scales / scales[:, None]).abs()
        pairs = correlations[torch.triu(torch.ones_like(correlations, dtype=torch.bool), 1)]
        return min(1.0, float(pairs.mean())), float((pairs > CORRELATED).double().mean())


def _space_evenly(count: int, limit: int) -> Tensor:
    """Return ``limit`` evenly spaced indices below ``count``; all of them if there are no more."""
    if count <= limit:
        return torch.arange(count)
    return torch.linspace(0, count - 1, limit).round().long()
