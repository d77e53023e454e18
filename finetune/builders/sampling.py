"""Sampling weights of the training images in each epoch."""

from functools import lru_cache
from typing import Any

import numpy as np

from finetune.builders.optimization.component_params import check_types, describe_failure
from finetune.config.sections.balance import ImbalanceConfig
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    GroupDraws,
    Sampling,
    SamplingSchedule,
    check_sampling,
    count_draws,
)
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up

_EPOCH_PARAMS = ("epoch", "num_epochs")
_SAMPLER_PARAMS_KEY = "imbalance.sampler_params"


def build_sampling_schedule(
    imbalance: ImbalanceConfig, data: TrainingData, *, num_epochs: int
) -> SamplingSchedule:
    """Return the sampling of the training images as a function of the epoch.

    Args:
        imbalance: Section of the config, with a sampler.
        data: Images of the run.
        num_epochs: Number of epochs of the run.

    Raises:
        ConfigError: The sampler does not exist, does not take its parameters, fails, or does not
            draw the same number of images in every epoch.
    """
    name, params = imbalance.sampler, imbalance.sampler_params
    sampler = look_up(SAMPLERS, name, setting="imbalance.sampler")
    epoch_params = [param for param in _EPOCH_PARAMS if has_parameter(sampler, param)]
    for param in _EPOCH_PARAMS:
        if param in params:
            raise ConfigError(
                f"{_SAMPLER_PARAMS_KEY}: '{param}' is passed by the training loop. Leave it out."
            )
    check_params(
        sampler,
        {**params, **dict.fromkeys(epoch_params)},
        num_positional=2,
        setting=_SAMPLER_PARAMS_KEY,
    )
    if name in SAMPLERS:
        check_types(sampler, params, setting=_SAMPLER_PARAMS_KEY)
    labels = data.train.labels

    @lru_cache(maxsize=1)
    def compute_sampling(epoch: int) -> Sampling:
        values = {"epoch": epoch, "num_epochs": num_epochs}
        kwargs = {**params, **{param: values[param] for param in epoch_params}}
        try:
            return _validate_sampling(sampler(labels, len(data.classes), **kwargs), len(labels))
        except FinetuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"imbalance.sampler={name} with {_SAMPLER_PARAMS_KEY}={params} fails in epoch "
                f"{epoch} (counted from 0): "
                f"{describe_failure(error, params, is_custom=':' in name)}."
            ) from error

    if not epoch_params:
        constant = compute_sampling(0)
        return lambda _: constant
    num_draws = [count_draws(compute_sampling(epoch), len(labels)) for epoch in range(num_epochs)]
    for epoch, count in enumerate(num_draws):
        if count != num_draws[0]:
            raise ConfigError(
                f"imbalance.sampler={name} draws {num_draws[0]} images in epoch 0 and {count} in "
                f"epoch {epoch}; every epoch must draw the same number."
            )
    return compute_sampling


def compute_images_per_epoch(
    imbalance: ImbalanceConfig, data: TrainingData, *, num_epochs: int
) -> int:
    """Return the number of training images that an epoch draws.

    Raises:
        ConfigError: As ``build_sampling_schedule``.
    """
    sampling_schedule = build_sampling_schedule(imbalance, data, num_epochs=num_epochs)
    return count_draws(sampling_schedule(0), len(data.train))


def _validate_sampling(output: Any, num_images: int) -> Sampling:
    """Return the output of a sampler, weights as an array.

    Raises:
        ValueError: The images cannot be drawn by it.
    """
    is_final = output is None or isinstance(output, GroupDraws)
    sampling: Sampling = output if is_final else np.asarray(output, float)
    check_sampling(sampling, num_images)
    return sampling
