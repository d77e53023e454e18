"""How the probe trains more than the head, where that is asked for."""

import torch

from finetune.builders.resolve import require_int
from finetune.builders.schedules import build_lr_lambda
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.models.eval_mode import eval_mode
from finetune.models.graph_split import split_last_groups
from finetune.models.groups import find_layer_groups
from finetune.probe.activation_training import LastStageSettings
from finetune.probe.extractor import ActivationLayout
from finetune.probe.last_stage import LastStagePlan, OptimizerFactory


def plan_last_stage(
    config: Config,
    network: Network,
    make_optimizer: OptimizerFactory,
    *,
    num_images: int,
    num_cached: int,
    batch_size: int,
    micro_batch_size: int,
) -> LastStagePlan | None:
    """Return how the last layers are trained on kept maps; None where the head is all.

    Args:
        config: Resolved.
        network: The backbone.
        make_optimizer: Of the run.
        num_images: Of training.
        num_cached: Views of all images, those of validation with them.
        batch_size: Images of a step.
        micro_batch_size: Images that a process holds in memory together.

    Raises:
        ConfigError: The network cannot be cut there, or the maps take more room than there may be.
    """
    depth = config.probe.depth
    if depth == 1:
        return None
    maps = _find_activation_layout(config, network)
    num_bytes = maps.shape.numel() * 4 * num_cached
    if num_bytes > config.cache.max_gb * 1e9:
        raise ConfigError(
            f"probe.depth={depth} keeps {num_bytes / 1e9:.2g} GB of maps of {num_cached} views, more "
            f"than cache.max_gb={config.cache.max_gb:g}. Raise that, or take fewer probe.num_crops, or "
            f"leave probe.depth out."
        )
    passes = require_int(config.probe.last_stage_epochs)
    training = LastStageSettings(
        num_passes=passes,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        lr_factor=build_lr_lambda(config, num_steps=passes * -(-num_images // batch_size)),
        gradient_clip=config.trainer.gradient_clip_val,
        precision=config.trainer.precision,
        seed=config.seed,
    )
    return LastStagePlan(
        depth=depth,
        settings=training,
        make_optimizer=make_optimizer,
        monitor=config.trainer.monitor,
        num_bytes=num_bytes,
    )


def _find_activation_layout(config: Config, network: Network) -> ActivationLayout:
    """Return what is kept of an image; the network must be such that it can be cut there."""
    depth, num_groups = config.probe.depth, len(find_layer_groups(network.module))
    if depth >= num_groups:
        raise ConfigError(
            f"probe.depth={depth} leaves nothing of {config.model.backbone} frozen, which has "
            f"{num_groups} layer groups. Take {num_groups - 1} at most, or --unfreeze all."
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *network.spec.input_size, generator=generator)
    with eval_mode(network.module), torch.inference_mode():
        halves = split_last_groups(network.module, depth)
        maps = None if halves is None else halves.trunk(images)
        if halves is not None and isinstance(maps, torch.Tensor) and len(maps) == len(images):
            again, whole = halves.last_stage(maps), network.module(images)
            if torch.allclose(again, whole, rtol=1e-3, atol=1e-4):
                return ActivationLayout.from_activations(maps)
    raise ConfigError(
        f"probe.depth={depth} cannot apply to {config.model.backbone}: what its last layers are "
        f"given cannot be told from its code. Leave it out."
    )


def check_last_stage(config: Config) -> None:
    """Refuse settings of the last layers' training that would do nothing.

    Args:
        config: Resolved, with a probe.

    Raises:
        ConfigError: Names both settings.
    """
    depth, passes = config.probe.depth, config.probe.last_stage_epochs
    if (depth == 1) != (passes == 0):
        raise ConfigError(
            f"probe.last_stage_epochs={passes} cannot apply to probe.depth={depth}: a depth of 2 or more "
            f"takes passes over kept maps, a depth of 1 takes none. Leave probe.last_stage_epochs out."
        )
