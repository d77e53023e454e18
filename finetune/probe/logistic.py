"""Multinomial logistic regression with an L2 penalty, fitted to convergence by L-BFGS.

The features are read in chunks, so that they may lie in a file larger than memory. The penalty
applies to features that are centred and divided by one number, their root mean square norm: it
means the same for every backbone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.probe.multi_label.binary_regression import compute_label_loss_and_error

_CHUNK_ROWS = 8192
_MAX_CACHED_VALUES = 2**24
"""Size up to which features are kept in memory, in values: 64 MiB."""

_MIN_EIGENVALUE = 1e-10
"""Fraction of the features' variance below which a direction is left out.

Its part of a logit is at most its eigenvalue divided by the penalty.
"""

_HISTORY_SIZE = 10
_MAX_ITERATIONS = 200


Targets = NDArray[np.int64] | NDArray[np.float32]
"""Class indices (N,), or 1 for each label of multi-label images (N, K)."""


class FeatureArray(Protocol):
    """Float32 features (N, D) that are read by slices of rows.

    Attributes:
        shape: (N, D).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, D)."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """Return the features of some rows, shape (n, D)."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A linear classifier.

    Attributes:
        weight: float32, shape (K, D).
        bias: float32, shape (K,).
    """

    weight: Tensor
    bias: Tensor

    def scale_to(self, max_norm: float | None) -> "LinearHead":
        """Return the head with rows of at most a norm; None keeps it.

        All weights and biases are divided by one number, so that the order of the classes stays.
        """
        if max_norm is None:
            return self
        divisor = max(1.0, float(self.weight.norm(dim=1).max()) / max_norm)
        return LinearHead(self.weight / divisor, self.bias / divisor)

    def compute_logits(self, features: FeatureArray) -> Tensor:
        """Return the logits of features, shape (N, K)."""
        chunks = [
            torch.from_numpy(features[rows]) @ self.weight.T + self.bias
            for rows in _iter_slices(features.shape[0], _CHUNK_ROWS)
        ]
        return torch.cat(chunks) if chunks else torch.empty(0, len(self.bias))


@dataclass(frozen=True, slots=True)
class LogisticProblem:
    """Data of H heads that are fitted together, each with its own sample weights.

    Attributes:
        features: Features of N rows, (N, D).
        labels: Class indices, int64, shape (N,), or 1 for each label of multi-label images,
            float32, shape (N, K): each label then has a regression of its own.
        weights: Weight of each row in the mean loss of each head, not negative, shape (H, N).
        num_classes: Number of classes K.
        positive_weights: Factor of the loss of images with each label, shape (K,); None for 1.
    """

    features: FeatureArray
    labels: Targets
    weights: NDArray[np.float64]
    num_classes: int
    positive_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class FeatureBasis:
    """Principal axes of R directions of the features, which are scaled to norm 1.

    Attributes:
        mean: Mean of the features, shape (D,).
        norm: Root mean square norm of the centred features.
        eigenvalues: Variance of the scaled features along each axis, shape (R,).
        axes: Orthonormal axes, shape (D, R).
    """

    mean: Tensor
    norm: float
    eigenvalues: Tensor
    axes: Tensor


class HeadFitter:
    """Solver of one problem for a sequence of penalties, each warm-started from the one before.

    The heads are fitted together, by one matrix product over all of them: those of the folds of a
    cross-validation differ little, and so does their curvature.

    Args:
        problem: The data of the heads.
        tolerance: Largest component of the gradient at which the fit ends.
        chunk_rows: Rows that are read at a time.
        max_cached_values: Size up to which the features are kept in memory, in values.
        scaled_like: Fitter of the same features, whose scale and axes are used; None to compute
            them from the rows and their mean weights.
    """

    def __init__(
        self,
        problem: LogisticProblem,
        *,
        tolerance: float = 1e-5,
        chunk_rows: int = _CHUNK_ROWS,
        max_cached_values: int = _MAX_CACHED_VALUES,
        scaled_like: "HeadFitter | None" = None,
    ) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.chunk_rows = chunk_rows
        weights = torch.from_numpy(problem.weights)
        # a head whose rows all have weight 0 keeps its initial value
        self._sample_weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)).float()
        self._labels = torch.from_numpy(problem.labels)
        num_rows, columns = problem.features.shape
        self._projected: Tensor | None = None
        self._basis: FeatureBasis
        if scaled_like is not None:
            self._basis, self._projected = scaled_like._basis, scaled_like._projected
        elif num_rows * columns <= max_cached_values:
            # a small table would otherwise be read from its file, and scaled, some thousand times
            features = torch.from_numpy(problem.features[:])
            self._basis = _find_basis(features, self._sample_weights.double().mean(dim=0))
            centred = features - self._basis.mean
            self._projected = centred @ (self._basis.axes / self._basis.norm)
        else:
            self._basis = self._find_basis_in_chunks()
        # along the axes, for scaled features
        self._weight = torch.zeros(len(weights), problem.num_classes, len(self._basis.eigenvalues))
        self._bias = torch.zeros(len(weights), problem.num_classes)

    def fit(self, penalty: float) -> list[LinearHead]:
        """Return the heads that minimise the mean loss + penalty / 2 * squared norm of the weight.

        The penalty applies to the weight for scaled features; the bias has none.
        """
        # The Hessian of the loss is bounded by half of the features' covariance (Boehning 1992) and
        # about as ill-conditioned: scaling by its square root makes all directions alike.
        steps = (0.5 * self._basis.eigenvalues.clamp(min=0) + penalty).rsqrt()
        scaled_weight = (self._weight / steps).requires_grad_()
        bias = self._bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled_weight, bias],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=self.tolerance,
            tolerance_change=1e-9,
            history_size=_HISTORY_SIZE,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> float:
            with torch.no_grad():
                loss, weight_grad, bias.grad = self._compute_loss_and_grad(
                    scaled_weight * steps, bias, penalty
                )
                scaled_weight.grad = weight_grad * steps
            return loss

        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._weight, self._bias = scaled_weight * steps, bias.clone()
            heads = zip(*self._unscale(self._weight, self._bias), strict=True)
            return [LinearHead(*head) for head in heads]

    def _unscale(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (H, K, D) and biases (H, K) for features in their own scale."""
        weight = weight @ self._basis.axes.T / self._basis.norm
        return weight, bias - weight @ self._basis.mean

    def _compute_loss_and_grad(
        self, weight: Tensor, bias: Tensor, penalty: float
    ) -> tuple[float, Tensor, Tensor]:
        """Return the sum of the heads' losses and its gradients, in closed form."""
        is_projected = self._projected is not None
        plain_weight, plain_bias = (weight, bias) if is_projected else self._unscale(weight, bias)
        stacked_weight = plain_weight.flatten(0, 1)
        loss = penalty / 2 * float(weight.square().sum())
        weight_grad = torch.zeros_like(stacked_weight)
        bias_grad = torch.zeros_like(plain_bias.flatten())
        for rows, features in self._iter_chunks():
            sample_weights = self._sample_weights[:, rows].T
            logits = torch.addmm(plain_bias.flatten(), features, stacked_weight.T)
            logits = logits.view(len(features), *bias.shape)
            part, error = self._compute_loss_and_error(logits, self._labels[rows], sample_weights)
            loss += part
            error = error.flatten(1)
            weight_grad += error.T @ features
            bias_grad += error.sum(dim=0)
        if not is_projected:
            centred_grad = weight_grad - torch.outer(bias_grad, self._basis.mean)
            weight_grad = centred_grad / self._basis.norm @ self._basis.axes
        return loss, weight_grad.view_as(weight) + penalty * weight, bias_grad.view_as(bias)

    def _compute_loss_and_error(
        self, logits: Tensor, labels: Tensor, sample_weights: Tensor
    ) -> tuple[float, Tensor]:
        """Return the sum of the losses of logits (N, H, K), and its gradient by them."""
        if labels.ndim == 2:
            return compute_label_loss_and_error(
                logits, labels, sample_weights, self.problem.positive_weights
            )
        index = labels[:, None, None].expand(-1, logits.shape[1], 1)
        error = logits.log_softmax(dim=2)
        loss = -float((error.gather(2, index)[..., 0] * sample_weights).sum())
        error.exp_().scatter_add_(2, index, -torch.ones_like(index, dtype=error.dtype))
        return loss, error.mul_(sample_weights[..., None])

    def _find_basis_in_chunks(self) -> FeatureBasis:
        columns = self.problem.features.shape[1]
        mean = torch.zeros(columns, dtype=torch.float64)
        second_moment = torch.zeros(columns, columns, dtype=torch.float64)
        mean_weights = self._sample_weights.double().mean(dim=0)
        for rows, features in self._iter_chunks():
            features_f64 = features.double()
            mean += mean_weights[rows] @ features_f64
            second_moment += features_f64.T @ (mean_weights[rows, None] * features_f64)
        return _decompose(second_moment - torch.outer(mean, mean), mean)

    def _iter_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the features of all rows; their projections on the axes if these are in memory."""
        if self._projected is not None:
            yield slice(None), self._projected
            return
        for rows in _iter_slices(len(self._labels), self.chunk_rows):
            yield rows, torch.from_numpy(self.problem.features[rows])


def _find_basis(features: Tensor, weights: Tensor) -> FeatureBasis:
    """Return the basis of features (N, D) with the given weights in the mean, shape (N,).

    With fewer rows than columns the axes are found from the products of the rows, a smaller matrix.
    Rows of weight 0 may then have a part outside of the axes.
    """
    mean = weights @ features.double()
    rows = (features.double() - mean) * weights.sqrt()[:, None]
    if len(rows) >= rows.shape[1]:
        return _decompose(rows.T @ rows, mean)
    basis = _decompose(rows @ rows.T, mean)
    lengths = basis.eigenvalues.double().sqrt() * basis.norm
    return replace(basis, axes=(rows.T @ basis.axes.double() / lengths).float())


def _decompose(covariance: Tensor, mean: Tensor) -> FeatureBasis:
    """Return the basis of features with a covariance, which need not be scaled."""
    norm = max(0.0, float(covariance.trace())) ** 0.5 or 1.0
    eigenvalues, axes = torch.linalg.eigh(covariance / norm**2)
    is_used = eigenvalues > _MIN_EIGENVALUE
    return FeatureBasis(mean.float(), norm, eigenvalues[is_used].float(), axes[:, is_used].float())


def _iter_slices(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, chunk_rows):
        yield slice(first, first + chunk_rows)
