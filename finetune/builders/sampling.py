"""Which images an epoch draws, from names and numbers in the config."""

from functools import lru_cache
from typing import Any

import numpy as np

from finetune.builders.resolve import require_int
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    GroupDraws,
    Sampling,
    SamplingSchedule,
    check_sampling,
    count_draws,
)
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up
from finetune.types import Split

_EPOCH_PARAMS = ("epoch", "num_epochs")
_SAMPLER_PARAMS_KEY = "imbalance.sampler_params"


def build_sampling_schedule(config: Config, manifest: Manifest) -> SamplingSchedule:
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
    times = [time for time in _EPOCH_PARAMS if has_parameter(sampler, time)]
    for time in _EPOCH_PARAMS:
        if time in params:
            raise ConfigError(
                f"{_SAMPLER_PARAMS_KEY}: '{time}' follows from the training. Leave it out."
            )
    check_params(
        sampler, {**params, **dict.fromkeys(times)}, num_positional=2, setting=_SAMPLER_PARAMS_KEY
    )
    labels = np.asarray(manifest.encode_labels(manifest.get_samples(Split.TRAIN)), np.int64)
    num_epochs = require_int(config.trainer.epochs)

    @lru_cache(maxsize=1)
    def sampling(epoch: int) -> Sampling:
        known = {"epoch": epoch, "num_epochs": num_epochs}
        given = {**params, **{time: known[time] for time in times}}
        try:
            return _validate_sampling(sampler(labels, len(manifest.classes), **given), len(labels))
        except FinetuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"imbalance.sampler={name} with {_SAMPLER_PARAMS_KEY}={params} fails in epoch {epoch} (counted "
                f"from 0): {type(error).__name__}: {error}"
            ) from error

    if not times:
        always = sampling(0)
        return lambda _: always
    drawn = [count_draws(sampling(epoch), len(labels)) for epoch in range(num_epochs)]
    for epoch, found in enumerate(drawn):
        if found != drawn[0]:
            raise ConfigError(
                f"imbalance.sampler={name} draws {drawn[0]} images in epoch 0 and {found} in epoch "
                f"{epoch}; it must be equally many in all."
            )
    return sampling


def compute_images_per_epoch(config: Config, manifest: Manifest) -> int:
    """Return how many training images an epoch of a resolved config draws.

    Raises:
        ConfigError: As ``build_sampling_schedule``.
    """
    sampling = build_sampling_schedule(config, manifest)
    return count_draws(sampling(0), len(manifest.get_samples(Split.TRAIN)))


def _validate_sampling(output: Any, num_images: int) -> Sampling:
    """Return what a sampler gave as arrays.

    Raises:
        ValueError: The images cannot be drawn so.
    """
    plain = output is None or isinstance(output, GroupDraws)
    sampling: Sampling = output if plain else np.asarray(output, float)
    check_sampling(sampling, num_images)
    return sampling
