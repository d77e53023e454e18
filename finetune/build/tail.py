"""How the probe trains more than the head, where that is asked for."""

import torch

from finetune.build.recipe import lr_factor
from finetune.build.resolve import number
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.models.cut import Halves, cut_before
from finetune.models.groups import layer_groups
from finetune.probe.tail import TailTraining
from finetune.training.tail import MakeOptimizer, TailPlan


def plan_tail(
    config: Config,
    network: Network,
    make_optimizer: MakeOptimizer,
    *,
    num_images: int,
    num_kept: int,
    batch_size: int,
) -> TailPlan | None:
    """Return how the last layers are trained on kept maps; None where the head is all.

    Args:
        config: Resolved.
        network: The backbone.
        make_optimizer: Of the run.
        num_images: Of training.
        num_kept: Views of all images, those of validation with them.
        batch_size: Images of a step.

    Raises:
        ConfigError: The network cannot be cut there, or the maps take more room than there may be.
    """
    depth = config.probe.depth
    if depth == 1:
        return None
    halves = _cut(config, network)
    example = torch.zeros(1, *network.spec.input_size)
    with torch.inference_mode():
        maps = halves.first(example)
    num_bytes = maps.numel() * 4 * num_kept
    if num_bytes > config.cache.max_gb * 1e9:
        raise ConfigError(
            f"probe.depth={depth} keeps {num_bytes / 1e9:.1f} GB of maps of {num_kept} views, more "
            f"than cache.max_gb={config.cache.max_gb:g}. Raise that, or take fewer probe.views, or "
            f"leave probe.depth out."
        )
    epochs = number(config.probe.passes)
    steps = epochs * -(-num_images // batch_size)
    training = TailTraining(
        epochs=epochs,
        batch_size=batch_size,
        lr_factor=lr_factor(config, num_steps=steps),
        gradient_clip=config.trainer.gradient_clip,
        precision=config.trainer.precision,
        seed=config.seed,
    )
    return TailPlan(
        depth=depth,
        training=training,
        make_optimizer=make_optimizer,
        monitor=config.trainer.monitor,
        num_bytes=num_bytes,
    )


def _cut(config: Config, network: Network) -> Halves:
    depth, groups = config.probe.depth, layer_groups(network.module)
    if depth >= len(groups):
        raise ConfigError(
            f"probe.depth={depth} leaves nothing of {config.model.backbone} frozen, which has "
            f"{len(groups)} layer groups. Take {len(groups) - 1} at most, or --unfreeze all."
        )
    names = [name for group in groups[:depth] for name in group.parameters]
    halves = cut_before(network.module.eval(), names)
    if halves is None:
        raise ConfigError(
            f"probe.depth={depth} cannot apply to {config.model.backbone}: what its last layers "
            f"are given cannot be told from its code. Leave it out."
        )
    return halves


def check_tail(config: Config) -> None:
    """Refuse settings of the last layers' training that would do nothing.

    Args:
        config: Resolved, with a probe.

    Raises:
        ConfigError: Names both settings.
    """
    depth, epochs = config.probe.depth, config.probe.passes
    if (depth == 1) != (epochs == 0):
        raise ConfigError(
            f"probe.passes={epochs} cannot apply to probe.depth={depth}: passes over kept maps are "
            f"for a depth of 2 or more. Leave probe.passes out."
        )
