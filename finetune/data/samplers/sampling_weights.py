"""Sampling strategies for class imbalance: pure functions of the labels and the epoch.

Classes without images are ignored everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# N images, K classes, G groups of images

Labels = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupDraws:
    """Number of draws of each group in an epoch, spread evenly over the images of the group.

    Two images of a group are drawn equally often, up to one draw. A user's sampler
    (``imbalance.sampler=my_package.module:function``) may return this instead of weights::

        from finetune.data.samplers import GroupDraws

    Attributes:
        groups: Group index of each image, int64, shape (N,).
        counts: Number of draws of each group per epoch, int64, shape (G,); 0 for a group without
            images.
    """

    groups: NDArray[np.int64]
    counts: NDArray[np.int64]

    def draw_rows(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of an epoch in random order, int64, shape (sum of counts,).

        Each of the n images of a group is drawn ``count // n`` times; the remaining draws go to
        different images, so that no image is drawn twice if the count is at most n.
        """
        order = generator.permutation(len(self.groups))
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        sizes = np.bincount(self.groups, minlength=len(self.counts))
        group = self.groups[by_group]
        position = np.arange(len(by_group)) - (np.cumsum(sizes) - sizes)[group]
        quotient, remainder = np.divmod(self.counts, np.maximum(sizes, 1))
        times = quotient[group] + (position < remainder[group])
        rows: NDArray[np.int64] = generator.permutation(np.repeat(by_group, times))
        return rows


Sampling = Weights | GroupDraws | None
"""Weights of the images (N,) for N draws with replacement, ``GroupDraws``, or None for each image
once."""

SamplingSchedule = Callable[[int], Sampling]
"""Function from the epoch, counted from 0, to its sampling."""


def count_draws(sampling: Sampling, num_images: int) -> int:
    """Return the number of draws of an epoch from N images."""
    return int(sampling.counts.sum()) if isinstance(sampling, GroupDraws) else num_images


def compute_expected_draws(sampling: Sampling, num_images: int) -> Weights:
    """Return the expected draws of each image up to a common factor, float64, shape (N,)."""
    if sampling is None:
        return np.ones(num_images)
    if isinstance(sampling, GroupDraws):
        sizes = np.bincount(sampling.groups, minlength=len(sampling.counts))
        return np.asarray((sampling.counts / np.maximum(sizes, 1))[sampling.groups], float)
    return sampling


def check_sampling(sampling: Sampling, num_images: int) -> None:
    """Check a sampling of N images.

    Raises:
        ValueError: The number of weights or groups is not N, weights are negative, not finite or
            all 0, or images are drawn from an empty group.
    """
    if isinstance(sampling, GroupDraws):
        sizes = np.bincount(sampling.groups, minlength=len(sampling.counts))
        if len(sampling.groups) != num_images or len(sizes) != len(sampling.counts):
            raise ValueError(
                f"GroupDraws.groups must have {num_images} indices of groups in counts, not "
                f"{len(sampling.groups)} indices of {len(sizes)} groups for "
                f"{len(sampling.counts)} counts"
            )
        if (sampling.counts < 0).any() or sampling.counts[sizes == 0].any():
            raise ValueError("GroupDraws.counts must be 0 or more, and 0 for groups without images")
    elif sampling is not None:
        _check_weights(sampling, num_images)


def _check_weights(weights: Weights, num_images: int) -> None:
    if weights.shape != (num_images,):
        raise ValueError(f"sampling weights must have shape ({num_images},), not {weights.shape}")
    invalid = weights[~(weights >= 0)]
    if len(invalid):
        raise ValueError(f"sampling weights must be 0 or more, not {invalid[0]}")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if not np.isfinite(total):
        raise ValueError(
            f"the sum of the sampling weights must be finite; the largest is {weights.max():g}"
        )
    if not total > 0:
        raise ValueError("sampling weights must not all be 0")


def compute_start_epoch(fraction: float, num_epochs: int) -> int:
    """Return the epoch, counted from 0, that follows a fraction of all epochs.

    It is at most the last epoch, so that a requested phase is never skipped.

    Args:
        fraction: Fraction of the epochs, in [0, 1).
        num_epochs: Number of epochs.

    Raises:
        ValueError: The fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"a fraction of the epochs must be in [0, 1), not {fraction}")
    return min(int(fraction * num_epochs + 1e-9), num_epochs - 1)


def uniform(labels: Labels, num_classes: int) -> None:
    """Return None: each image once per epoch, in a new order."""
    del labels, num_classes


def weighted(labels: Labels, num_classes: int, *, power: float = 1.0) -> Weights:
    """Return class size ** -power for each image, shape (N,).

    Args:
        labels: Class indices, int64, shape (N,).
        num_classes: Number of classes K.
        power: Exponent; 1 draws all classes equally often, 0 all images.
    """
    counts = np.bincount(labels, minlength=num_classes)
    with np.errstate(over="ignore"):  # check_sampling rejects infinite weights
        return np.asarray(np.maximum(counts, 1)[labels] ** -float(power), float)


def square_root(labels: Labels, num_classes: int) -> Weights:
    """Return 1 / sqrt(class size) for each image, shape (N,): half-way to balanced classes.

    Mahajan et al. 2018, section 2.2, https://arxiv.org/abs/1805.00932.
    """
    return weighted(labels, num_classes, power=0.5)


def effective_number(labels: Labels, num_classes: int, *, beta: float = 0.999) -> Weights:
    """Return 1 / effective number of the class for each image, shape (N,).

    Cui et al. 2019, eq. 2, https://arxiv.org/abs/1901.05555. A class is drawn in proportion to its
    size over (1 - beta ** size) / (1 - beta).

    Args:
        labels: Class indices, int64, shape (N,).
        num_classes: Number of classes K.
        beta: Hyperparameter in [0, 1). The effective number of a class is at most 1 / (1 - beta):
            with 0.999, a value of the paper, classes with several thousand images or more keep
            their relative frequencies, and smaller ones are drawn equally often. The paper's other
            choice, (N - 1) / N, is nearly ``weighted`` for all class sizes.

    Raises:
        ValueError: beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta}")
    counts = np.bincount(labels, minlength=num_classes)
    return np.asarray(((1 - beta) / (1 - beta ** np.maximum(counts, 1)))[labels], float)


def oversample(labels: Labels, num_classes: int) -> GroupDraws:
    """Return draws of all classes as often as the largest, evenly over the images of a class."""
    counts = np.bincount(labels, minlength=num_classes)
    return GroupDraws(np.asarray(labels), np.where(counts > 0, counts.max(), 0))


def undersample(labels: Labels, num_classes: int) -> GroupDraws:
    """Return as many draws of each class as the smallest has images, without repetition.

    Every epoch draws other images.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return GroupDraws(np.asarray(labels), np.where(counts > 0, counts[counts > 0].min(), 0))


def progressive(labels: Labels, num_classes: int, *, epoch: int, num_epochs: int) -> Weights | None:
    """Return weights that interpolate between uniform and class-balanced sampling, shape (N,).

    Kang et al. 2020, eq. 3, https://arxiv.org/abs/1910.09217, from each image once
    in the first epoch to all classes equally often in the last one; a single epoch is the last.

    Args:
        labels: Class indices, int64, shape (N,).
        num_classes: Number of classes K.
        epoch: Epoch, counted from 0.
        num_epochs: Number of epochs of the whole training.
    """
    progress = 1.0 if num_epochs == 1 else min(1.0, epoch / (num_epochs - 1))
    if not progress:
        return None
    by_class = weighted(labels, num_classes)
    return np.asarray((1 - progress) / len(labels) + progress * by_class / by_class.sum(), float)


def deferred(
    labels: Labels, num_classes: int, *, epoch: int, num_epochs: int, start_fraction: float = 0.8
) -> Weights | None:
    """Return None, and class-balanced weights in the last epochs, shape (N,).

    Deferred re-sampling (DRS) of Cao et al. 2019, section 3.3, https://arxiv.org/abs/1906.07413.

    Args:
        labels: Class indices, int64, shape (N,).
        num_classes: Number of classes K.
        epoch: Epoch, counted from 0.
        num_epochs: Number of epochs of the whole training.
        start_fraction: Fraction of the epochs before class-balanced sampling starts, in [0, 1); it
            starts in the last epoch at the latest. The paper starts after 160 of 200 epochs.

    Raises:
        ValueError: start_fraction is not in [0, 1).
    """
    is_balanced = epoch >= compute_start_epoch(start_fraction, num_epochs)
    return weighted(labels, num_classes) if is_balanced else None


def abundant_first(
    labels: Labels,
    num_classes: int,
    *,
    epoch: int,
    num_epochs: int,
    first_fraction: float = 0.5,
    min_relative_size: float | None = None,
    power: float = 1.0,
) -> Sampling:
    """Return draws of the abundant classes only, and weights of all classes in the second phase.

    An epoch has N draws in both phases; the first phase draws the images of the abundant classes
    evenly. The two largest classes are always abundant, as nothing can be learned from a single
    class: with two classes the first phase draws each image once.

    Args:
        labels: Class indices, int64, shape (N,).
        num_classes: Number of classes K.
        epoch: Epoch, counted from 0.
        num_epochs: Number of epochs of the whole training.
        first_fraction: Fraction of the epochs in the first phase, in [0, 1); the last epoch is
            always in the second phase.
        min_relative_size: Size of an abundant class relative to the largest, in [0, 1]; None for
            classes with at least as many images as the median class.
        power: Exponent of the weights in the second phase, as in ``weighted``.

    Raises:
        ValueError: first_fraction or min_relative_size is out of range.
    """
    if min_relative_size is not None and not 0 <= min_relative_size <= 1:
        raise ValueError(f"min_relative_size must be in [0, 1], not {min_relative_size}")
    if epoch >= compute_start_epoch(first_fraction, num_epochs):
        return weighted(labels, num_classes, power=power)
    counts = np.bincount(labels, minlength=num_classes)
    sizes = np.sort(counts[counts > 0])
    min_size = np.median(sizes) if min_relative_size is None else min_relative_size * sizes[-1]
    rare = (counts < min(min_size, sizes[-2:][0]))[labels].astype(np.int64)
    return GroupDraws(rare, np.array([len(labels), 0])) if rare.any() else None


SAMPLERS: Mapping[str, Callable[..., Sampling]] = {
    "uniform": uniform,
    "weighted": weighted,
    "sqrt": square_root,
    "effective_number": effective_number,
    "oversample": oversample,
    "undersample": undersample,
    "progressive": progressive,
    "deferred": deferred,
    "abundant_first": abundant_first,
}
"""Name to function of ``labels, num_classes, **params``, and of ``epoch`` and ``num_epochs`` if it
has such parameters."""
