"""Resolution of every "auto" in a config from facts of the network, the images and the hardware."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from finetune.builders.augmentation import find_rare_classes
from finetune.builders.model_prior import ClassBalance
from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.imbalance import apply_imbalance_strategy
from finetune.config.load import replace_values
from finetune.config.multi_label import resolve_task
from finetune.config.recipe import compute_fixres_train_size
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.data.samplers.epoch_sampler import compute_effective_batch_size
from finetune.data.samplers.sampling_weights import count_draws
from finetune.data.training_data import TrainingData
from finetune.distributed.launch import LaunchInfo, detect_launch
from finetune.errors import ConfigError
from finetune.lookup import has_parameter, look_up
from finetune.losses import LOSSES
from finetune.models.backbone import Network, is_size_agnostic
from finetune.models.classifier import has_batch_norm
from finetune.models.costs.throughput import compute_depthwise_density
from finetune.models.head import find_linear_head
from finetune.models.layer_groups import find_layer_groups
from finetune.models.pretrained.weights import is_pretrained
from finetune.system.host import count_available_cores
from finetune.training.schedules.unfreeze import compute_phases
from finetune.types import Phase

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """Resolved config, and the facts and reasons behind it.

    Attributes:
        config: Resolved config, with the parts of the imbalance strategy written out.
        facts: Facts that the rules were applied to.
        reasons: Reason for each value that a rule chose, by dotted key.
    """

    config: ResolvedConfig
    facts: Facts
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Resolved config with everything else that constraints depend on.

    Attributes:
        config: Resolved config.
        facts: Facts of the network and the hardware.
        phases: Phases of the unfreeze schedule.
        num_images: Training images that an epoch draws.
        rare_classes: Classes that ``augment.rare_class_preset`` applies to.
        untrained_classes: Classes of the target prior that training gives no weight.
        num_gpus: Visible CUDA devices of this node.
    """

    config: ResolvedConfig
    facts: Facts
    phases: Sequence[Phase]
    num_images: int
    rare_classes: Sequence[str] = ()
    untrained_classes: Sequence[str] = ()
    num_gpus: int = 0

    @property
    def batch_size(self) -> int:
        """Global batch size, reduced to the images that an epoch draws."""
        return compute_effective_batch_size(
            self.config.trainer.batch_size,
            num_images=self.num_images,
            num_shards=self.config.num_micro_batches,
        )

    @property
    def micro_batch_size(self) -> int:
        """Images that a process holds at once."""
        return self.batch_size // self.config.num_micro_batches

    @property
    def min_micro_batch_size(self) -> int:
        """Images that a process must hold at once: 2 with mixing or live BatchNorm, else 1."""
        augment = self.config.augment
        return 2 if augment.mixup or augment.cutmix or self.trains_local_batch_norm else 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.num_images // self.batch_size

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.config.trainer.epochs * self.steps_per_epoch

    @property
    def max_depth(self) -> int:
        """Largest unfreeze depth."""
        return max(phase.depth for phase in self.phases)

    @property
    def trains_local_batch_norm(self) -> bool:
        """Whether BatchNorm statistics of single processes are updated below the head."""
        mode = self.config.model.batch_norm
        is_local = mode == "train" or (mode == "sync" and self.config.world_size == 1)
        return is_local and self.max_depth > 1 and self.facts.has_batch_norm


def resolve_config(
    config: Config, data: TrainingData, network: Network, *, is_resumed: bool = False
) -> ResolveResult:
    """Return the config with every "auto" resolved.

    Args:
        config: Config as given, with an accelerator.
        data: Images of the run.
        network: Backbone.
        is_resumed: Whether the config is that of an existing run. Older releases wrote the default
            label smoothing into runs that are a linear probe only, where it never applied; there
            it becomes 0.

    Raises:
        ConfigError: Settings contradict each other, or a loss does not exist.
    """
    facts = _collect_facts(config, data, network)
    return resolve_from_facts(config, facts, is_resumed=is_resumed)


def resolve_from_facts(config: Config, facts: Facts, *, is_resumed: bool = False) -> ResolveResult:
    """Return the config with every "auto" resolved, as ``resolve_config`` does from its facts."""
    chosen = choose_auto_values(config, facts)
    config = replace_values(config, {key: choice.value for key, choice in chosen.items()})
    optim = config.optim
    if not is_resumed and optim.lr != "auto" and optim.feature_change != 1:
        raise ConfigError(
            f"optim.feature_change={optim.feature_change:g} cannot apply to optim.lr={optim.lr:g}: "
            f"a learning rate follows from it where one is measured, after a linear probe. Leave "
            f"one of them out."
        )
    config = apply_imbalance_strategy(resolve_task(config, facts))
    smoothing = _resolve_label_smoothing(config, facts)
    resolved = ResolvedConfig.from_config(
        replace_values(config, {"loss.label_smoothing": smoothing})
    )
    if is_resumed and resolved.is_probe_only:
        resolved = replace_values(resolved, {"loss.label_smoothing": 0.0})
    reasons = {key: choice.reason for key, choice in chosen.items() if choice.reason}
    return ResolveResult(resolved, facts, reasons)


def build_run_spec(
    resolved: ResolveResult,
    data: TrainingData,
    balance: ClassBalance,
    depth_schedule: Callable[[int], int],
) -> RunSpec:
    """Return the resolved config with the facts that constraints depend on.

    Args:
        resolved: Resolved config and facts of the network.
        data: Images of the run.
        balance: Treatment of imbalanced classes.
        depth_schedule: Unfreeze depth as a function of the epoch.

    Raises:
        ConfigError: The unfreeze schedule fails or returns no depth.
    """
    trainer = resolved.config.trainer
    return RunSpec(
        config=resolved.config,
        facts=resolved.facts,
        phases=compute_phases(depth_schedule, num_epochs=trainer.epochs),
        num_images=count_draws(balance.sampling_schedule(0), len(data.train)),
        rare_classes=find_rare_classes(resolved.config.augment, data),
        untrained_classes=balance.find_untrained_classes(data.classes),
        num_gpus=torch.cuda.device_count() if trainer.accelerator == "cuda" else 0,
    )


def _collect_facts(config: Config, data: TrainingData, network: Network) -> Facts:
    launch = detect_launch()
    groups = find_layer_groups(network.module)
    accelerator = config.trainer.accelerator
    has_fast_bf16 = _has_fast_bf16(accelerator)
    return Facts(
        class_counts=data.class_counts,
        num_val_images=len(data.val),
        is_pretrained=is_pretrained(config.model.weights),
        num_groups=len(groups),
        has_linear_head=find_linear_head(network.module) is not None,
        has_batch_norm=has_batch_norm(network.module),
        supports_any_size=is_size_agnostic(
            network, compute_fixres_train_size(network.spec.input_size[-1])
        ),
        image_size=network.spec.input_size[-1],
        has_fast_bf16=has_fast_bf16,
        depthwise_density=compute_depthwise_density(
            network.module, network.spec, device=torch.device("cpu")
        )
        if accelerator == "cpu" and has_fast_bf16
        else 0.0,
        free_cores=_count_node_cores(launch),
        accelerator=accelerator,
        processes_per_node=1 if launch is None else launch.local_world_size,
        num_nodes=1 if launch is None else launch.num_nodes,
        multi_label_images=len(data.train) if data.is_multi_label else None,
    )


def _count_node_cores(launch: LaunchInfo | None) -> int:
    """Return the number of cores that the processes of this node share.

    SLURM may bind each task to its own cores, in which case the cores of all tasks are added.
    """
    cores_per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if launch is not None and launch.launcher == "srun" and cores_per_task.isdecimal():
        return int(cores_per_task) * launch.local_world_size
    return count_available_cores()


def _has_fast_bf16(accelerator: str) -> bool:
    """Return whether the hardware computes bfloat16 faster than float32."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False


def _resolve_label_smoothing(config: Config, facts: Facts) -> float:
    """Return the label smoothing; 0 for multi-label images, a probe only and adjusted logits.

    Smoothing bounds the adjusted logits of large classes and hardly those of rare ones: on ten
    synthetic classes of 1000 to 10 images it cost a linear head 6 points of accuracy and 1.5 points
    of balanced accuracy. With a strength that held-out images choose, such heads had the same macro
    F1 with and without, on six draws of TrashNet with ratios of 10 to 100; there, training is that
    of ``imbalance.strategy=none``.
    """
    if config.loss.label_smoothing != "auto":
        return config.loss.label_smoothing
    loss = look_up(LOSSES, config.loss.name, setting="loss.name")
    is_probe_only = config.unfreeze.name == "linear_probe" and config.probe.enabled == "on"
    if facts.is_multi_label:
        return 0.0
    has_adjusted_logits = config.loss.name == "logit_adjusted" or (
        config.imbalance.head_rebalancing == "post_hoc"
        and config.imbalance.post_hoc_strength != "held_out"
    )
    if is_probe_only or has_adjusted_logits or not has_parameter(loss, "label_smoothing"):
        return 0.0
    return LABEL_SMOOTHING
