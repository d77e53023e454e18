"""Class priors, and the adjustment of logits from one prior to another.

A network's probabilities assume the class frequencies in its training loss. For another class prior
they are multiplied by the ratio of the priors (Saerens et al. 2002, eq. 2.4,
https://doi.org/10.1162/089976602753284446); with a uniform target this is post-hoc logit adjustment
(Menon et al. 2021, section 4.1, https://arxiv.org/abs/2007.07314).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ClassPrior = tuple[float, ...]
"""Probability of each class, in class order; they sum to 1."""

_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Priors:
    """Class priors of a model, each in class order.

    Attributes:
        train: Class frequencies of the training images.
        model: Class prior that the network's logits assume.
        target: Class prior that the probabilities are adjusted to; None leaves them unadjusted.
    """

    train: ClassPrior
    model: ClassPrior
    target: ClassPrior | None = None

    @property
    def effective(self) -> ClassPrior:
        """Class prior of the probabilities after the adjustment."""
        return self.model if self.target is None else self.target

    @property
    def shift(self) -> tuple[float, ...] | None:
        """Logit adjustment added to calibrated logits, shape (K,); None without one."""
        return None if self.target is None else compute_logit_shift(self.target, self.model)

    @staticmethod
    def from_json(tree: Mapping[str, Any] | None, num_classes: int) -> "Priors | None":
        """Return the priors of a card's JSON; None for a card written by an older release.

        Raises:
            KeyError: A required key is missing.
            ValueError: A prior has another number of classes or does not sum to 1, or the target
                contains a class that the model prior excludes.
        """
        if tree is None:
            return None
        target = tree["target"]
        priors = Priors(
            train=_parse_prior(tree["train"], num_classes),
            model=_parse_prior(tree["model"], num_classes),
            target=None if target is None else _parse_prior(target, num_classes),
        )
        if priors.target is not None:
            compute_logit_shift(priors.target, priors.model)
        return priors


def normalize_prior(weights: Sequence[float]) -> ClassPrior:
    """Return non-negative weights divided by their sum.

    Raises:
        ValueError: A weight is negative or not finite, or all are 0.
    """
    values = [float(weight) for weight in weights]
    largest = max(values, default=0.0)
    if not (0 < largest < math.inf and all(value >= 0 for value in values)):
        raise ValueError(f"class weights {values} must be finite, non-negative and not all 0")
    scaled = [value / largest for value in values]
    total = sum(scaled)
    return tuple(value / total for value in scaled)


def build_uniform_prior(num_classes: int) -> ClassPrior:
    """Return the prior of equally probable classes."""
    return (1 / num_classes,) * num_classes


def compute_model_prior(
    class_counts: Sequence[int],
    *,
    class_mass: Sequence[float] | None = None,
    tau: float = 0.0,
) -> ClassPrior:
    """Compute the class prior that the logits of a trained network assume.

    This is the class distribution in the loss. With a logit-adjusted loss (Menon et al. 2021, eq.
    10), whose logits exclude ``tau`` times the logarithm of the training prior, it is divided by
    that power of the training prior. The result is exact for a network that minimises its expected
    loss; mixup, label smoothing and early stopping change it slightly, and weights have a smaller
    effect than their value if every training image is fitted (Byrd and Lipton 2019,
    https://arxiv.org/abs/1812.03372).

    Args:
        class_counts: Number of training images per class, shape (K,).
        class_mass: Total weight of each class in the loss over an epoch (sampling probability times
            class weight, in any unit), shape (K,); None if each image counts once.
        tau: Parameter tau of a logit-adjusted loss; 0 for any other loss.

    Raises:
        ValueError: A count or mass is negative, or all are 0.
    """
    train = normalize_prior(class_counts)
    loss_prior = train if class_mass is None else normalize_prior(class_mass)
    if not tau:
        return loss_prior
    # in logarithms: powers with a large tau leave the range of float64
    logs = [
        math.log(mass) - tau * math.log(frequency) if mass > 0 and frequency > 0 else -math.inf
        for mass, frequency in zip(loss_prior, train, strict=True)
    ]
    return normalize_prior([math.exp(log - max(logs)) for log in logs])


def compute_logit_shift(target: Sequence[float], model: Sequence[float]) -> tuple[float, ...]:
    """Compute log(target / model), which adjusts logits from one prior to another, shape (K,).

    A class with a target of 0 gets minus infinity, so that its probability is 0.

    Args:
        target: Class prior to adjust to, shape (K,).
        model: Class prior that the logits assume, shape (K,).

    Raises:
        ValueError: A class has a positive target but a model prior of 0.
    """
    pairs = list(zip(target, model, strict=True))
    if any(t > 0 and m <= 0 for t, m in pairs):
        raise ValueError("a class with a positive target prior has a model prior of 0")
    return tuple(math.log(t) - math.log(m) if t > 0 else -math.inf for t, m in pairs)


def adjust_priors(priors: Priors, *, strength: float) -> Priors:
    """Return priors with a target between the model prior and a uniform one.

    The target is uniform over the classes with training images at a strength of 1, and there is
    none at 0.

    Raises:
        ValueError: A class with training images has a model prior of 0.
    """
    if strength == 0:
        return replace(priors, target=None)
    uniform = normalize_prior([float(frequency > 0) for frequency in priors.train])
    if strength == 1:
        return replace(priors, target=uniform)
    target = interpolate_priors(priors.model, uniform, strength=strength)
    return replace(priors, target=target)


def interpolate_priors(
    model: Sequence[float], target: Sequence[float], *, strength: float
) -> ClassPrior:
    """Return the prior at a fraction of the way from one to another, in logarithms, shape (K,).

    It is proportional to model^(1 - strength) * target^strength. The logit adjustment to it equals
    ``strength`` times that to the target, but for a constant that no probability depends on: with a
    uniform target it is post-hoc logit adjustment with tau = strength (Menon et al. 2021, eq. 9).

    Args:
        model: Class prior that the logits assume, shape (K,).
        target: Class prior at a strength of 1, shape (K,); a class with 0 keeps 0.
        strength: Fraction of the way, 0 or more.

    Raises:
        ValueError: A class has a positive target but a model prior of 0.
    """
    logs = [
        math.log(m) + strength * shift if t > 0 else -math.inf
        for m, t, shift in zip(model, target, compute_logit_shift(target, model), strict=True)
    ]
    return normalize_prior([math.exp(log - max(logs)) for log in logs])


def is_same_prior(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two priors are equal up to rounding."""
    return all(
        abs(a - b) <= _RELATIVE_TOLERANCE * max(a, b) for a, b in zip(one, other, strict=True)
    )


def describe_class_prior(prior: ClassPrior, train_prior: ClassPrior) -> str:
    """Return a description of a prior, relative to the training class frequencies."""
    if is_same_prior(prior, build_uniform_prior(len(prior))):
        return "uniform"
    if is_same_prior(prior, train_prior):
        return "training class frequencies"
    if (power := _find_power(prior, train_prior)) is not None:
        return f"training class frequencies to the power of {power:.2g}"
    return f"custom, {min(prior):.3g} to {max(prior):.3g} per class"


def _find_power(prior: ClassPrior, train_prior: ClassPrior) -> float | None:
    """Return the exponent in (0, 1) with which the training prior yields a prior; None if none."""
    known = [(p, t) for p, t in zip(prior, train_prior, strict=True) if t > 0]
    if any(p <= 0 for p, _ in known):
        return None
    (p_low, t_low), (p_high, t_high) = (
        choose(known, key=lambda pair: pair[1]) for choose in (min, max)
    )
    if t_low >= t_high:
        return None
    power = math.log(p_high / p_low) / math.log(t_high / t_low)
    expected = normalize_prior([t**power if t > 0 else 0.0 for t in train_prior])
    return power if 0 < power < 1 and is_same_prior(prior, expected) else None


def _parse_prior(values: Any, num_classes: int) -> ClassPrior:
    prior = tuple(map(float, values))
    has_unit_sum = abs(sum(prior) - 1) < 1e-6  # False for NaN
    if len(prior) != num_classes or not has_unit_sum or min(prior) < 0:
        raise ValueError(f"a prior is not a probability distribution over {num_classes} classes")
    return prior
