"""When what is done about unequal classes changes for the last time in the course of training."""

import numpy as np
from numpy.typing import NDArray

from finetune.builders.criterion import class_weights_start
from finetune.builders.resolve import number
from finetune.builders.sampling import make_sampling
from finetune.config.imbalance import IMBALANCE, ImbalanceStrategy
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import expected_draws
from finetune.types import Split


def last_parts(config: Config, manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Return of "sampler" and "class_weights" who asked, and from which epoch on they stay so.

    Epochs count from 0, which stands for what never changes; ``progressive`` changes up to the last
    epoch. Who asked is a strategy or a key, with its value.

    Args:
        config: Resolved.
        manifest: The images.

    Raises:
        ConfigError: As ``make_sampling``.
    """
    chosen, strategy = config.imbalance, IMBALANCE[config.imbalance.strategy]
    named, plain = f"imbalance.strategy={chosen.strategy}", ImbalanceStrategy()
    sampler = f"imbalance.sampler={chosen.sampler}" if strategy.sampler == plain.sampler else named
    start = f"imbalance.class_weights_from={chosen.class_weights_from}"
    weights = start if strategy.class_weights == plain.class_weights else named
    return {
        "sampler": (sampler, _last_sampling(config, manifest)),
        "class_weights": (weights, class_weights_start(config) or 0),
    }


def _last_sampling(config: Config, manifest: Manifest) -> int:
    """Return the epoch, from 0, from which on the classes have the shares of the last one."""
    sampling = make_sampling(config, manifest)
    num_images = len(manifest.of(Split.TRAIN))

    def shares(epoch: int) -> NDArray[np.float64]:
        drawn = expected_draws(sampling(epoch), num_images)
        return np.asarray(drawn / drawn.sum(), float)

    epoch = number(config.trainer.epochs) - 1
    last = shares(epoch)
    while epoch > 0 and np.allclose(shares(epoch - 1), last, rtol=1e-9, atol=0):
        epoch -= 1
    return epoch
