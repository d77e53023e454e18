"""Which images an epoch draws, from names and numbers in the config."""

from functools import lru_cache
from typing import Any

import numpy as np

from finetune.builders.resolve import number
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    Draws,
    Sampling,
    SamplingAt,
    check_sampling,
    num_drawn,
)
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, look_up, takes
from finetune.types import Split

_TIMES = ("epoch", "num_epochs")
_KEY = "imbalance.sampler_params"


def make_sampling(config: Config, manifest: Manifest) -> SamplingAt:
    """Return how often each training image is drawn, as a function of the epoch.

    Args:
        config: Resolved.
        manifest: The images.

    Raises:
        ConfigError: The sampler does not exist, does not take its parameters, fails, or does not
            draw equally many images in every epoch.
    """
    name, params = config.imbalance.sampler, config.imbalance.sampler_params
    sampler = look_up(SAMPLERS, name, setting="imbalance.sampler")
    times = [time for time in _TIMES if takes(sampler, time)]
    for time in _TIMES:
        if time in params:
            raise ConfigError(f"{_KEY}: '{time}' follows from the training. Leave it out.")
    check_params(sampler, {**params, **dict.fromkeys(times)}, given=2, setting=_KEY)
    labels = np.asarray(manifest.labels(manifest.of(Split.TRAIN)), np.int64)
    num_epochs = number(config.trainer.epochs)

    @lru_cache(maxsize=1)
    def sampling(epoch: int) -> Sampling:
        known = {"epoch": epoch, "num_epochs": num_epochs}
        given = {**params, **{time: known[time] for time in times}}
        try:
            return _checked(sampler(labels, len(manifest.classes), **given), len(labels))
        except FinetuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"imbalance.sampler={name} with {_KEY}={params} fails in epoch {epoch} (counted "
                f"from 0): {type(error).__name__}: {error}"
            ) from error

    if not times:
        always = sampling(0)
        return lambda _: always
    drawn = [num_drawn(sampling(epoch), len(labels)) for epoch in range(num_epochs)]
    for epoch, found in enumerate(drawn):
        if found != drawn[0]:
            raise ConfigError(
                f"imbalance.sampler={name} draws {drawn[0]} images in epoch 0 and {found} in epoch "
                f"{epoch}; it must be equally many in all."
            )
    return sampling


def images_per_epoch(config: Config, manifest: Manifest) -> int:
    """Return how many training images an epoch of a resolved config draws.

    Raises:
        ConfigError: As ``make_sampling``.
    """
    sampling = make_sampling(config, manifest)
    return num_drawn(sampling(0), len(manifest.of(Split.TRAIN)))


def _checked(found: Any, num_images: int) -> Sampling:
    """Return what a sampler gave as arrays.

    Raises:
        ValueError: The images cannot be drawn so.
    """
    plain = found is None or isinstance(found, Draws)
    sampling: Sampling = found if plain else np.asarray(found, float)
    check_sampling(sampling, num_images)
    return sampling
