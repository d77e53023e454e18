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

_PART_ROWS = 8192
_HISTORY = 10
_MAX_ITERATIONS = 200


class Rows(Protocol):
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

    def logits(self, features: Rows) -> Tensor:
        """Return logits, shape (N, K)."""
        parts = [
            torch.from_numpy(features[rows]) @ self.weight.T + self.bias
            for rows in _parts(features.shape[0])
        ]
        return torch.cat(parts) if parts else torch.empty(0, len(self.bias))


@dataclass(frozen=True, slots=True)
class Problem:
    """What a head is fitted to.

    Attributes:
        features: N rows of D.
        labels: Class indices, int64, shape (N,).
        weights: Of each row in the mean loss, not negative, shape (N,).
        num_classes: K.
    """

    features: Rows
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    num_classes: int


class HeadFitter:
    """Fits heads of different penalties to one problem, each from where the one before ended.

    Args:
        problem: What they are fitted to.
        tolerance: Largest component of the gradient at the end.
    """

    def __init__(self, problem: Problem, *, tolerance: float = 1e-5) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self._share = torch.from_numpy(problem.weights / problem.weights.sum()).float()
        self._labels = torch.from_numpy(problem.labels)
        self._mean, self._norm = self._scale()
        shape = (problem.num_classes, problem.features.shape[1])
        self._weight = torch.zeros(shape, requires_grad=True)
        self._bias = torch.zeros(problem.num_classes, requires_grad=True)

    def fit(self, penalty: float) -> LinearHead:
        """Return the head of the smallest mean loss + penalty / 2 * the squared norm of its weight.

        The penalty is that on the weight of scaled features; the bias has none.
        """
        optimizer = torch.optim.LBFGS(
            [self._weight, self._bias],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=self.tolerance,
            tolerance_change=1e-9,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(lambda: self._loss(penalty))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return self._head()

    def _head(self) -> LinearHead:
        """Return the head for features as they are, before scaling."""
        weight = self._weight / self._norm
        return LinearHead(weight, self._bias - weight @ self._mean)

    def _loss(self, penalty: float) -> float:
        """Return the loss and set the gradients, both in closed form."""
        with torch.no_grad():
            head = self._head()
            loss = penalty / 2 * float(self._weight.square().sum())
            by_weight, by_bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
            for rows in _parts(len(self._labels)):
                features = torch.from_numpy(self.problem.features[rows])
                labels, share = self._labels[rows, None], self._share[rows]
                error = (features @ head.weight.T + head.bias).log_softmax(dim=1)
                loss -= float(error.gather(1, labels)[:, 0] @ share)
                error.exp_().scatter_add_(1, labels, -torch.ones_like(labels, dtype=error.dtype))
                error *= share[:, None]
                by_weight += error.T @ features
                by_bias += error.sum(dim=0)
            scaled = (by_weight - torch.outer(by_bias, self._mean)) / self._norm
            self._weight.grad = scaled + penalty * self._weight
            self._bias.grad = by_bias
        return loss

    def _scale(self) -> tuple[Tensor, float]:
        """Return the weighted mean of the features, shape (D,), and their norm around it."""
        mean = torch.zeros(self.problem.features.shape[1], dtype=torch.float64)
        square = 0.0
        for rows in _parts(len(self._labels)):
            part = torch.from_numpy(self.problem.features[rows]).double()
            share = self._share[rows].double()
            mean += share @ part
            square += float(share @ part.square().sum(dim=1))
        norm = max(0.0, square - float(mean @ mean)) ** 0.5
        return mean.float(), norm or 1.0


def _parts(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, _PART_ROWS):
        yield slice(first, first + _PART_ROWS)
