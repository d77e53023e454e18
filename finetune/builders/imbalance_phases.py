"""When what is done about unequal classes changes for the last time in the course of training."""

import numpy as np
from numpy.typing import NDArray

from finetune.builders.criterion import compute_class_weights_start_epoch
from finetune.builders.resolve import require_int
from finetune.builders.sampling import build_sampling_schedule
from finetune.config.imbalance import IMBALANCE_STRATEGIES, ImbalanceStrategy
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import compute_expected_draws
from finetune.types import Split


def find_final_imbalance_phases(config: Config, manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Return of "sampler" and "class_weights" who asked, and from which epoch on they stay so.

    Epochs count from 0, which stands for what never changes; ``progressive`` changes up to the last
    epoch. Who asked is a strategy or a key, with its value.

    Args:
        config: Resolved.
        manifest: The images.

    Raises:
        ConfigError: As ``build_sampling_schedule``.
    """
    chosen, strategy = config.imbalance, IMBALANCE_STRATEGIES[config.imbalance.strategy]
    named, plain = f"imbalance.strategy={chosen.strategy}", ImbalanceStrategy()
    sampler = f"imbalance.sampler={chosen.sampler}" if strategy.sampler == plain.sampler else named
    start = f"imbalance.class_weights_start_fraction={chosen.class_weights_start_fraction}"
    weights = start if strategy.class_weights == plain.class_weights else named
    return {
        "sampler": (sampler, _find_final_sampling_epoch(config, manifest)),
        "class_weights": (weights, compute_class_weights_start_epoch(config) or 0),
    }


def _find_final_sampling_epoch(config: Config, manifest: Manifest) -> int:
    """Return the epoch, from 0, from which on the classes have the shares of the last one."""
    sampling = build_sampling_schedule(config, manifest)
    num_images = len(manifest.get_samples(Split.TRAIN))

    def shares(epoch: int) -> NDArray[np.float64]:
        drawn = compute_expected_draws(sampling(epoch), num_images)
        return np.asarray(drawn / drawn.sum(), float)

    epoch = require_int(config.trainer.epochs) - 1
    last = shares(epoch)
    while epoch > 0 and np.allclose(shares(epoch - 1), last, rtol=1e-9, atol=0):
        epoch -= 1
    return epoch
