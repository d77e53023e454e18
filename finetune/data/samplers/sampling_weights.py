"""How often an epoch draws each image: pure functions of the labels and of the epoch.

Classes without images have no share in anything.
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
    """So many images of each group, each of them as often as the others, give or take one.

    Attributes:
        groups: Index of each image's group, shape (N,).
        counts: Images that an epoch draws of each group, shape (G,); 0 for a group without images.
    """

    groups: NDArray[np.int64]
    counts: NDArray[np.int64]

    def draw_rows(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of an epoch in random order, shape (sum of counts,).

        Of n images, ``count // n`` draws go to each; what is left goes to images of which none
        gets two of it, so that nothing is drawn twice where the count is at most n.
        """
        order = generator.permutation(len(self.groups))
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        sizes = np.bincount(self.groups, minlength=len(self.counts))
        group = self.groups[by_group]
        place = np.arange(len(by_group)) - (np.cumsum(sizes) - sizes)[group]
        whole, rest = np.divmod(self.counts, np.maximum(sizes, 1))
        times = whole[group] + (place < rest[group])
        rows: NDArray[np.int64] = generator.permutation(np.repeat(by_group, times))
        return rows


Sampling = Weights | GroupDraws | None
"""Chance of each image to be drawn (N,), with replacement, N draws in all; or ``GroupDraws``; or None,
which draws each image once."""

SamplingSchedule = Callable[[int], Sampling]
"""Epoch, from 0, to what is drawn in it."""


def count_draws(sampling: Sampling, num_images: int) -> int:
    """Return how many images an epoch draws of N."""
    return int(sampling.counts.sum()) if isinstance(sampling, GroupDraws) else num_images


def compute_expected_draws(sampling: Sampling, num_images: int) -> Weights:
    """Return how often each image is drawn, up to a factor of them all, shape (N,)."""
    if sampling is None:
        return np.ones(num_images)
    if isinstance(sampling, GroupDraws):
        sizes = np.bincount(sampling.groups, minlength=len(sampling.counts))
        return np.asarray((sampling.counts / np.maximum(sizes, 1))[sampling.groups], float)
    return sampling


def check_sampling(sampling: Sampling, num_images: int) -> None:
    """Raise unless N images can be drawn so.

    Raises:
        ValueError: Weights or groups of another number of images, weights below 0, infinite or
            all of them 0, or draws from a group that has none.
    """
    if isinstance(sampling, GroupDraws):
        sizes = np.bincount(sampling.groups, minlength=len(sampling.counts))
        if len(sampling.groups) != num_images or len(sizes) != len(sampling.counts):
            raise ValueError(f"draws need a group with a count for each of {num_images} images")
        if (sampling.counts < 0).any() or sampling.counts[sizes == 0].any():
            raise ValueError("draws need counts of 0 or more, and none of a group without images")
    elif sampling is not None:
        _check_weights(sampling, num_images)


def _check_weights(weights: Weights, num_images: int) -> None:
    if weights.shape != (num_images,):
        raise ValueError(
            f"{num_images} weights of 0 or more are needed, not of shape {weights.shape}"
        )
    wrong = weights[~(weights >= 0)]
    if len(wrong):
        raise ValueError(f"weights of 0 or more are needed, not {wrong[0]}")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if not np.isfinite(total):
        raise ValueError(f"weights with a finite sum are needed, not up to {weights.max():g}")
    if not total > 0:
        raise ValueError("the weights must not all be 0")


def compute_start_epoch(fraction: float, num_epochs: int) -> int:
    """Return the epoch, from 0, in which something begins after a share of all epochs.

    It is the last one at the latest, so that what was asked for happens.

    Raises:
        ValueError: The share is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"a share of the epochs lies in [0, 1), not at {fraction}")
    return min(int(fraction * num_epochs + 1e-9), num_epochs - 1)


def uniform(labels: Labels, num_classes: int) -> None:
    """Return None: every image once an epoch, in a new order."""
    del labels, num_classes


def weighted(labels: Labels, num_classes: int, *, power: float = 1.0) -> Weights:
    """Return class size ** -power for each image, shape (N,).

    Args:
        labels: Class indices, shape (N,).
        num_classes: K.
        power: 1 draws every class alike, 0 every image.
    """
    counts = np.bincount(labels, minlength=num_classes)
    with np.errstate(over="ignore"):  # what is infinite is refused with the other weights
        return np.asarray(np.maximum(counts, 1)[labels] ** -float(power), float)


def square_root(labels: Labels, num_classes: int) -> Weights:
    """Return 1 / sqrt(class size) for each image, shape (N,): half-way to balanced classes.

    Mahajan et al. 2018, section 2.2, https://arxiv.org/abs/1805.00932.
    """
    return weighted(labels, num_classes, power=0.5)


def effective_number(labels: Labels, num_classes: int, *, beta: float = 0.999) -> Weights:
    """Return 1 / effective number of a class's images for each of them, shape (N,).

    Cui et al. 2019, eq. 2, https://arxiv.org/abs/1901.05555. A class is drawn in proportion to its
    size over (1 - beta ** size) / (1 - beta).

    Args:
        labels: Class indices, shape (N,).
        num_classes: K.
        beta: In [0, 1). A class counts for 1 / (1 - beta) images at most: with 0.999, one of the
            paper's, classes of some thousand images and more are left as they are to each other,
            and smaller ones are drawn alike. The paper's other choice, (N - 1) / N, is all but
            ``weighted`` whatever the sizes.

    Raises:
        ValueError: beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta lies in [0, 1), not at {beta}")
    counts = np.bincount(labels, minlength=num_classes)
    return np.asarray(((1 - beta) / (1 - beta ** np.maximum(counts, 1)))[labels], float)


def oversample(labels: Labels, num_classes: int) -> GroupDraws:
    """Return every class as often as the largest, no image two times more than its like."""
    counts = np.bincount(labels, minlength=num_classes)
    return GroupDraws(np.asarray(labels), np.where(counts > 0, counts.max(), 0))


def undersample(labels: Labels, num_classes: int) -> GroupDraws:
    """Return as many images of each class as the smallest has, none twice, others each epoch."""
    counts = np.bincount(labels, minlength=num_classes)
    return GroupDraws(np.asarray(labels), np.where(counts > 0, counts[counts > 0].min(), 0))


def progressive(labels: Labels, num_classes: int, *, epoch: int, num_epochs: int) -> Weights | None:
    """Return weights that move evenly from those of images to those of classes, shape (N,).

    Kang et al. 2020, eq. 3, https://arxiv.org/abs/1910.09217, with the first epoch (each image
    once) and the last one (every class alike) as the ends; a single epoch is the last.

    Args:
        labels: Class indices, shape (N,).
        num_classes: K.
        epoch: From 0.
        num_epochs: Of the whole training.
    """
    share = 1.0 if num_epochs == 1 else min(1.0, epoch / (num_epochs - 1))
    if not share:
        return None
    by_class = weighted(labels, num_classes)
    return np.asarray((1 - share) / len(labels) + share * by_class / by_class.sum(), float)


def deferred(
    labels: Labels, num_classes: int, *, epoch: int, num_epochs: int, start_fraction: float = 0.8
) -> Weights | None:
    """Return None, and in the last epochs weights that draw every class alike, shape (N,).

    Deferred re-sampling (DRS) of Cao et al. 2019, section 3.3, https://arxiv.org/abs/1906.07413.

    Args:
        labels: Class indices, shape (N,).
        num_classes: K.
        epoch: From 0.
        num_epochs: Of the whole training.
        start_fraction: Share of the epochs after which it begins, in [0, 1), in the last one at the
            latest; the paper begins after 160 of 200.

    Raises:
        ValueError: start_fraction is not in [0, 1).
    """
    late = epoch >= compute_start_epoch(start_fraction, num_epochs)
    return weighted(labels, num_classes) if late else None


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
    """Return the abundant classes alone, their images evenly, and then all with rare ones stressed.

    An epoch has N draws in both parts. The two largest classes are always abundant, as one alone
    would teach nothing: with two classes the first part draws each image once.

    Args:
        labels: Class indices, shape (N,).
        num_classes: K.
        epoch: From 0.
        num_epochs: Of the whole training.
        first_fraction: Of the epochs that the first part takes, in [0, 1); the last epoch is in the second.
        min_relative_size: A class is abundant if it has this share of the largest, in [0, 1]; None takes
            those that have at least as many images as the median class.
        power: Of the second part's weights, as in ``weighted``.

    Raises:
        ValueError: share or min_relative_size lies outside of its range.
    """
    if min_relative_size is not None and not 0 <= min_relative_size <= 1:
        raise ValueError(f"min_relative_size lies in [0, 1], not at {min_relative_size}")
    if epoch >= compute_start_epoch(first_fraction, num_epochs):
        return weighted(labels, num_classes, power=power)
    counts = np.bincount(labels, minlength=num_classes)
    sizes = np.sort(counts[counts > 0])
    least = np.median(sizes) if min_relative_size is None else min_relative_size * sizes[-1]
    rare = (counts < min(least, sizes[-2:][0]))[labels].astype(np.int64)
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
"""``labels, num_classes, **params``; one that takes ``epoch`` and ``num_epochs`` is given them."""
