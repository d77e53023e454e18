"""Numbers of a check, on which its findings stand."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.commands.fit.check.check_images import Contradiction
from finetune.commands.fit.check.learning_trace import LearningTrace

_NUM_PERMUTATIONS = 999


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """Predictions of images that a network has not learned, compared with chance.

    Attributes:
        num_images: Number of the other images.
        num_predictions: Predictions that are counted: one for each image, or for each of its
            labels.
        num_right: Right predictions.
        chance: Mean number of right predictions with the labels exchanged at random.
        p_value: Fraction of such exchanges with as many right predictions or more.
    """

    num_images: int
    num_predictions: int
    num_right: int
    chance: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckEvidence:
    """Numbers of a check.

    Attributes:
        num_images: Images to learn.
        num_distinct: Different ones among them, by their pixels.
        pixel_std: Standard deviation of their pixels, in [0, 1].
        input_mean: Mean of each channel as the network sees it.
        input_std: Standard deviation of each channel as the network sees it.
        contradictions: Images with several labels among all training images.
        num_groups: Layer groups of the network.
        is_pretrained: Whether the weights are pretrained.
        main: Attempt with the settings of the run; None where the inputs do not differ.
        deeper: Attempt that trains all layer groups; None without one.
        other_rates: Attempts with other learning rates, in their order.
        held_out: Result on other training images; None where the images were not learned.
        time_limit_seconds: Time limit of all attempts.
        is_rate_chosen: Whether the recipe chose the rate of the run, and no person.
    """

    num_images: int
    num_distinct: int
    pixel_std: float
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    contradictions: tuple[Contradiction, ...] = ()
    num_groups: int
    is_pretrained: bool
    main: LearningTrace | None = None
    deeper: LearningTrace | None = None
    other_rates: tuple[LearningTrace, ...] = ()
    held_out: HeldOutResult | None = None
    time_limit_seconds: float
    is_rate_chosen: bool = False

    @property
    def is_learned(self) -> bool:
        """Whether the settings of the run learned the images."""
        return self.main is not None and self.main.is_learned


def compare_with_chance(
    predictions: NDArray[np.int64], targets: NDArray[np.int64], *, seed: int
) -> HeldOutResult:
    """Return how many predictions are right, and by how much that exceeds chance.

    Args:
        predictions: Predicted class of each image, shape (N,), or 0 or 1 for each label, (N, K).
        targets: True ones, in the same form.
        seed: Seed of the exchanges of labels between the images.
    """
    generator = np.random.default_rng(seed)
    num_right = int((predictions == targets).sum())
    counts = np.array(
        [
            (predictions == targets[generator.permutation(len(targets))]).sum()
            for _ in range(_NUM_PERMUTATIONS)
        ]
    )
    p_value = (1 + int((counts >= num_right).sum())) / (1 + _NUM_PERMUTATIONS)
    return HeldOutResult(
        len(targets), predictions.size, num_right, float(counts.mean()), float(p_value)
    )
