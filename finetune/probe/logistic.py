"""Multinomial logistic regression with an L2 penalty, to convergence, on features of any number.

The features are read in parts, so that they may lie in a file larger than the memory. They count as
centred and divided by one number, their root mean square norm: a penalty then means the same for
every backbone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK_ROWS = 8192
_MAX_CACHED_VALUES = 2**24
"""Of a table that is kept in memory: 64 MiB."""

_HISTORY_SIZE = 10
_MAX_ITERATIONS = 200


class FeatureArray(Protocol):
    """Features, float32, of which a slice at a time is read.

    Attributes:
        shape: (N, D).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, D)."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A linear classifier.

    Attributes:
        weight: float32, shape (K, D).
        bias: float32, shape (K,).
    """

    weight: Tensor
    bias: Tensor

    def compute_logits(self, features: FeatureArray) -> Tensor:
        """Return logits, shape (N, K)."""
        parts = [
            torch.from_numpy(features[rows]) @ self.weight.T + self.bias
            for rows in _iter_slices(features.shape[0])
        ]
        return torch.cat(parts) if parts else torch.empty(0, len(self.bias))


@dataclass(frozen=True, slots=True)
class LogisticProblem:
    """What some heads are fitted to, each to rows of weights of its own.

    Attributes:
        features: N rows of D.
        labels: Class indices, int64, shape (N,).
        weights: Of each row in the mean loss of each head, not negative, shape (H, N).
        num_classes: K.
    """

    features: FeatureArray
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    num_classes: int


class HeadFitter:
    """Fits heads of different penalties to one problem, each from where the one before ended.

    The heads are fitted together, by one matrix product over all of them: those of the folds of a
    cross-validation differ little, and so does their curvature.

    Args:
        problem: What they are fitted to.
        tolerance: Largest component of the gradient at the end.
    """

    def __init__(self, problem: LogisticProblem, *, tolerance: float = 1e-5) -> None:
        self.problem = problem
        self.tolerance = tolerance
        weights = torch.from_numpy(problem.weights)
        # where all rows of a head have no weight it stays as it began
        self._sample_weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)).float()
        self._labels = torch.from_numpy(problem.labels)
        num_rows, columns = problem.features.shape
        # a small table would otherwise be copied out of its file some thousand times
        is_small = num_rows * columns <= _MAX_CACHED_VALUES
        self._cached_features = [torch.from_numpy(problem.features[:])] if is_small else None
        self._mean, self._norm, covariance = self._compute_moments()
        self._eigenvalues, self._eigenvectors = (
            part.float() for part in torch.linalg.eigh(covariance)
        )
        # along the axes of the features' spread, scaled
        self._weight = torch.zeros(len(weights), problem.num_classes, columns)
        self._bias = torch.zeros(len(weights), problem.num_classes)

    def fit(self, penalty: float) -> list[LinearHead]:
        """Return the heads of the smallest mean loss + penalty / 2 * squared norm of the weight.

        The penalty is that on the weight of scaled features; the bias has none.
        """
        # the curvature of the loss is at most half of the spread of the features (Boehning 1992),
        # and about as uneven: in steps of its square root all directions are alike
        steps = (0.5 * self._eigenvalues.clamp(min=0) + penalty).rsqrt()
        moved = (self._weight / steps).requires_grad_()
        bias = self._bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [moved, bias],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=self.tolerance,
            tolerance_change=1e-9,
            history_size=_HISTORY_SIZE,
            line_search_fn="strong_wolfe",
        )

        def loss() -> float:
            with torch.no_grad():
                value, by_weight, bias.grad = self._compute_loss_and_grad(
                    moved * steps, bias, penalty
                )
                moved.grad = by_weight * steps
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._weight, self._bias = moved * steps, bias.clone()
            heads = zip(*self._unscale(self._weight, self._bias), strict=True)
            return [LinearHead(*head) for head in heads]

    def _unscale(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (H, K, D) and biases (H, K) for features as they are."""
        weight = weight @ self._eigenvectors.T / self._norm
        return weight, bias - weight @ self._mean

    def _compute_loss_and_grad(
        self, weight: Tensor, bias: Tensor, penalty: float
    ) -> tuple[float, Tensor, Tensor]:
        """Return the sum of the heads' losses and its gradients, in closed form."""
        plain, offset = self._unscale(weight, bias)
        table = plain.flatten(0, 1)
        loss = penalty / 2 * float(weight.square().sum())
        by_weight, by_bias = torch.zeros_like(table), torch.zeros_like(offset.flatten())
        for rows, features in self._iter_chunks():
            share, labels = self._sample_weights[:, rows].T, self._labels[rows, None, None]
            labels = labels.expand(-1, len(bias), 1)
            logits = torch.addmm(offset.flatten(), features, table.T)
            error = logits.view(len(features), *bias.shape).log_softmax(dim=2)
            loss -= float((error.gather(2, labels)[..., 0] * share).sum())
            error.exp_().scatter_add_(2, labels, -torch.ones_like(labels, dtype=error.dtype))
            error = error.mul_(share[..., None]).flatten(1)
            by_weight += error.T @ features
            by_bias += error.sum(dim=0)
        scaled = (by_weight - torch.outer(by_bias, self._mean)) / self._norm @ self._eigenvectors
        return loss, scaled.view_as(weight) + penalty * weight, by_bias.view_as(bias)

    def _compute_moments(self) -> tuple[Tensor, float, Tensor]:
        """Return the features' mean (D,), their norm around it, and their covariance, scaled."""
        columns = self.problem.features.shape[1]
        mean = torch.zeros(columns, dtype=torch.float64)
        square = torch.zeros(columns, columns, dtype=torch.float64)
        of_all = self._sample_weights.double().mean(dim=0)
        for rows, part in self._iter_chunks():
            exact = part.double()
            mean += of_all[rows] @ exact
            square += exact.T @ (of_all[rows, None] * exact)
        covariance = square - torch.outer(mean, mean)
        norm = max(0.0, float(covariance.trace())) ** 0.5 or 1.0
        return mean.float(), norm, covariance / norm**2

    def _iter_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        if self._cached_features is not None:
            yield slice(None), self._cached_features[0]
            return
        for rows in _iter_slices(len(self._labels)):
            yield rows, torch.from_numpy(self.problem.features[rows])


def _iter_slices(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, _CHUNK_ROWS):
        yield slice(first, first + _CHUNK_ROWS)
