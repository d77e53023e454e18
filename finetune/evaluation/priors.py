"""How probable each class is before an image is seen: in training, for a network, where it serves.

A network's probabilities hold for the shares of the classes that its loss saw. Where other shares
hold, or all classes are to count alike, they are moved by the ratio of the shares (Saerens et al.
2002, eq. 2.4, https://doi.org/10.1162/089976602753284446); with equal shares as the target that is
post-hoc logit adjustment (Menon et al. 2021, section 4.1, https://arxiv.org/abs/2007.07314).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ClassPrior = tuple[float, ...]

_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Priors:
    """Shares of the classes, in class order; each adds up to 1.

    Attributes:
        train: Among the training images.
        model: Which the network's logits assume.
        target: Which answers are adjusted to; None leaves them as the network gives them.
    """

    train: ClassPrior
    model: ClassPrior
    target: ClassPrior | None = None

    @property
    def effective(self) -> ClassPrior:
        """The shares that answers are for."""
        return self.model if self.target is None else self.target

    @property
    def shift(self) -> ClassPrior | None:
        """What is added to calibrated logits; None where nothing is."""
        return None if self.target is None else compute_logit_shift(self.target, self.model)

    @staticmethod
    def from_json(tree: Mapping[str, Any] | None, num_classes: int) -> "Priors | None":
        """Return the priors of a card's JSON; None where an older release wrote it.

        Raises:
            KeyError: Something is missing.
            ValueError: They are no shares of so many classes, or do not fit each other.
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


def normalize_prior(amounts: Sequence[float]) -> ClassPrior:
    """Return amounts of 0 or more as shares that add up to 1.

    Raises:
        ValueError: One is negative or no number, or all are 0.
    """
    values = [float(amount) for amount in amounts]
    largest = max(values, default=0.0)
    if not (0 < largest < math.inf and all(value >= 0 for value in values)):
        raise ValueError(f"{values} are no amounts of 0 or more that add up to something")
    scaled = [value / largest for value in values]
    total = sum(scaled)
    return tuple(value / total for value in scaled)


def build_uniform_prior(num_classes: int) -> ClassPrior:
    """Return equal shares."""
    return (1 / num_classes,) * num_classes


def compute_model_prior(
    class_counts: Sequence[int],
    *,
    class_mass: Sequence[float] | None = None,
    tau: float = 0.0,
) -> ClassPrior:
    """Return the class shares that the logits of a trained network assume.

    The one place that knows: the shares of what the loss sees, and with a logit-adjusted loss
    (Menon et al. 2021, eq. 10), whose logits lack ``tau`` times the logarithm of the
    training shares, these divided by that power of them. It is exact for a network that has learnt
    what its loss asks for; mixing, smoothed labels and early stopping move it a little, and where
    every training image is fitted, weights count for less than they say (Byrd and Lipton 2019,
    https://arxiv.org/abs/1812.03372).

    Args:
        class_counts: Training images of each class, shape (K,).
        class_mass: Total weight of each class in the loss over an epoch, by the sampler's chances
            times the class weights, in any unit, shape (K,); None where each image counts once.
        tau: The tau of a logit-adjusted loss; 0 for any other loss.

    Raises:
        ValueError: A count or mass is negative, or all are 0.
    """
    train = normalize_prior(class_counts)
    seen = train if class_mass is None else normalize_prior(class_mass)
    if not tau:
        return seen
    # as logarithms, since a large tau takes powers of shares out of a number's range
    logs = [
        math.log(mass) - tau * math.log(share) if mass > 0 and share > 0 else -math.inf
        for mass, share in zip(seen, train, strict=True)
    ]
    return normalize_prior([math.exp(log - max(logs)) for log in logs])


def compute_logit_shift(target: Sequence[float], model: Sequence[float]) -> ClassPrior:
    """Return log(target / model), which moves logits from one prior to another, shape (K,).

    A class whose target is 0 gets minus infinity, and with it the probability 0.

    Args:
        target: Shares where the answers are to hold.
        model: Shares that the logits assume.

    Raises:
        ValueError: A class with a target has no share for the model: it knows nothing of it.
    """
    pairs = list(zip(target, model, strict=True))
    if any(wanted > 0 and known <= 0 for wanted, known in pairs):
        raise ValueError("a class is wanted that had no part in training")
    return tuple(math.log(t) - math.log(m) if t > 0 else -math.inf for t, m in pairs)


def is_same_prior(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether two sets of shares are the same but for rounding."""
    return all(
        abs(a - b) <= _RELATIVE_TOLERANCE * max(a, b) for a, b in zip(one, other, strict=True)
    )


def describe_class_prior(prior: ClassPrior, train_prior: ClassPrior) -> str:
    """Say what shares are, beside those of the training images."""
    if is_same_prior(prior, build_uniform_prior(len(prior))):
        return "every class alike"
    if is_same_prior(prior, train_prior):
        return "the shares of the training images"
    return f"other shares, from {min(prior):.3g} to {max(prior):.3g} a class"


def _parse_prior(values: Any, num_classes: int) -> ClassPrior:
    shares = tuple(map(float, values))
    is_whole = abs(sum(shares) - 1) < 1e-6  # False for what is no number
    if len(shares) != num_classes or not is_whole or min(shares) < 0:
        raise ValueError(f"priors are no shares of {num_classes} classes")
    return shares
