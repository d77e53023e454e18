"""Nothing stays at "auto": facts are gathered, rules applied, contradictions refused."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.imbalance import apply_imbalance_strategy
from finetune.config.load import replace_values
from finetune.config.recipe import compute_fixres_train_size
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.epoch_sampler import compute_effective_batch_size
from finetune.distributed.launch import LaunchInfo, detect_launch
from finetune.errors import ConfigError, DataError
from finetune.lookup import has_parameter, look_up
from finetune.losses import LOSSES
from finetune.models.backbone import Network, is_size_agnostic
from finetune.models.classifier import has_batch_norm
from finetune.models.groups import compute_weight_rms, find_layer_groups
from finetune.models.head import find_linear_head
from finetune.models.weights import is_pretrained
from finetune.system.hardware import count_available_cores
from finetune.types import Split

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """A config in which nothing is "auto".

    Attributes:
        config: With the imbalance strategy written out.
        reasons: Why each value of the recipe was chosen, by dotted key.
    """

    config: Config
    reasons: Mapping[str, str]


def resolve_config(config: Config, manifest: Manifest, network: Network) -> ResolveResult:
    """Decide every "auto".

    Raises:
        ConfigError: A setting that cannot apply here or contradicts another.
    """
    chosen = choose_auto_values(config, _collect_facts(config, manifest, network))
    config = replace_values(config, {key: choice.value for key, choice in chosen.items()})
    config = _resolve_label_smoothing(apply_imbalance_strategy(config))
    _check_hardware(config)
    _check_weight_averaging(config)
    return ResolveResult(
        config, {key: choice.reason for key, choice in chosen.items() if choice.reason}
    )


def compute_global_batch_size(config: Config, *, num_images: int) -> int:
    """Return the images of a step over all processes, shrunk to those that an epoch draws.

    Args:
        config: Resolved.
        num_images: That an epoch draws.

    Raises:
        ConfigError: The batch does not divide by the processes.
        DataError: There are fewer images than batches at once.
    """
    asked = require_int(config.trainer.batch_size)
    processes = compute_world_size(config)
    shards = processes * require_int(config.trainer.accumulate_grad_batches)
    if asked % shards:
        raise ConfigError(
            f"trainer.batch_size={asked} does not divide by {processes} processes times "
            f"trainer.accumulate_grad_batches={config.trainer.accumulate_grad_batches}. Take a multiple of {shards}."
        )
    if num_images < shards:
        raise DataError(
            f"{num_images} training images an epoch cannot be shared by {shards} batches at once "
            f"({processes} processes times trainer.accumulate_grad_batches={config.trainer.accumulate_grad_batches})."
        )
    return compute_effective_batch_size(asked, num_images=num_images, num_shards=shards)


def is_probe_only(config: Config) -> bool:
    """Tell whether the probe is all that a resolved config asks for."""
    return config.unfreeze.name == "linear_probe" and config.probe.enabled == "on"


def compute_micro_batch_size(config: Config, batch_size: int) -> int:
    """Return the images of a global batch that a process holds together, of a resolved config."""
    return batch_size // (
        compute_world_size(config) * require_int(config.trainer.accumulate_grad_batches)
    )


def compute_world_size(config: Config) -> int:
    """Return the processes of all machines, of a resolved config."""
    return require_int(config.trainer.devices) * require_int(config.trainer.num_nodes)


def require_int(value: int | Literal["auto"]) -> int:
    """Return a whole number of a resolved config."""
    assert value != "auto", "auto is decided before"
    return value


def require_float(value: float | Literal["auto"]) -> float:
    """Return a number of a resolved config."""
    assert value != "auto", "auto is decided before"
    return value


def _collect_facts(config: Config, manifest: Manifest, network: Network) -> Facts:
    launch = detect_launch()
    groups = find_layer_groups(network.module)
    return Facts(
        class_counts=manifest.count_per_class(Split.TRAIN),
        num_val_images=len(manifest.get_samples(Split.VAL)),
        is_pretrained=is_pretrained(config.model.weights),
        num_groups=len(groups),
        weight_rms=compute_weight_rms(network.module, groups[min(1, len(groups) - 1)]),
        has_linear_head=find_linear_head(network.module) is not None,
        has_batch_norm=has_batch_norm(network.module),
        supports_any_size=is_size_agnostic(
            network, compute_fixres_train_size(network.spec.input_size[-1])
        ),
        image_size=network.spec.input_size[-1],
        has_fast_bf16=_has_fast_bf16(config.trainer.accelerator),
        free_cores=_count_node_cores(launch),
        accelerator=config.trainer.accelerator,
        processes_per_node=1 if launch is None else launch.local_world_size,
        num_nodes=1 if launch is None else launch.num_nodes,
    )


def _count_node_cores(launch: LaunchInfo | None) -> int:
    """Return the cores that the processes of this machine share.

    SLURM may bind each task to cores of its own, or not.
    """
    of_a_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if launch is not None and launch.launcher == "srun" and of_a_task.isdecimal():
        return int(of_a_task) * launch.local_world_size
    return count_available_cores()


def _has_fast_bf16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False


def _resolve_label_smoothing(config: Config) -> Config:
    """Return the config with the share of smoothed labels; a head alone is fitted without.

    Adjusted logits of large classes are bounded by it, those of rare classes hardly: on ten made-up
    classes of 1000 to 10 images it cost a linear head 6 points of accuracy, and 1.5 of balanced.
    """
    if config.loss.label_smoothing != "auto":
        return config
    loss = look_up(LOSSES, config.loss.name, setting="loss.name")
    adjusted = (
        config.loss.name == "logit_adjusted" or config.imbalance.head_rebalancing == "post_hoc"
    )
    spared = is_probe_only(config) or adjusted
    smoothed = not spared and has_parameter(loss, "label_smoothing")
    return replace_values(config, {"loss.label_smoothing": LABEL_SMOOTHING if smoothed else 0.0})


def _check_hardware(config: Config) -> None:
    """Refuse what this machine cannot do, where a library would quietly do something else."""
    trainer = config.trainer
    if config.model.batch_norm == "sync" and trainer.accelerator != "cuda":
        raise ConfigError(
            f"model.batch_norm=sync cannot apply to trainer.accelerator={trainer.accelerator}: "
            f"torch synchronises BatchNorm on GPUs only. Use frozen or train."
        )
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed cannot apply to trainer.accelerator=cpu: there is no fp16 "
            "arithmetic. Use bf16-mixed or 32-true."
        )
    if trainer.accelerator == "cuda" and require_int(trainer.devices) > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={trainer.devices}: this machine shows {torch.cuda.device_count()} "
            f"GPUs. Lower it, or check CUDA_VISIBLE_DEVICES; under srun ask for --gpus-per-node, "
            f"not for --gpus-per-task or --gpu-bind, which hide the others."
        )


def _check_weight_averaging(config: Config) -> None:
    """Refuse to average statistics that differ from process to process."""
    if require_float(config.optim.swa_fraction) and compute_world_size(config) > 1:
        kind = config.model.batch_norm
        if kind == "train":
            raise ConfigError(
                f"optim.swa_fraction={config.optim.swa_fraction} cannot apply to model.batch_norm="
                f"{kind} on {compute_world_size(config)} processes: each has statistics of its own. "
                f"Take model.batch_norm=frozen, or sync on GPUs, or optim.swa_fraction=0."
            )


def check_strategy(config: Config, depths: Sequence[int]) -> None:
    """Refuse a way of sharing the network that does not fit the run.

    Args:
        config: Resolved.
        depths: Unfreeze depth of each phase.

    Raises:
        ConfigError: Says why, and what to take instead.
    """
    trainer = config.trainer
    if trainer.strategy == "ddp":
        return
    how = f"trainer.strategy={trainer.strategy} cannot apply"
    if trainer.accelerator != "cuda":
        raise ConfigError(
            f"{how} to trainer.accelerator={trainer.accelerator}: Lightning shards on GPUs only. "
            f"Take trainer.strategy=ddp."
        )
    if len(set(depths)) > 1:
        raise ConfigError(
            f"{how} to unfreeze.name={config.unfreeze.name}, whose depth changes: what trains is "
            f"cut into shards once, at the start. Take trainer.strategy=ddp, or a schedule with "
            f"one depth: unfreeze.name=all or linear_probe."
        )
    if trainer.strategy == "deepspeed":
        raise ConfigError(
            f"{how}: its checkpoints are folders of shards, which neither the best epoch's bundle "
            f"nor a resume with another number of processes could read. Take trainer.strategy=fsdp."
        )
    if compute_world_size(config) == 1:
        raise ConfigError(
            f"{how} to one process, which has nobody to share with. Take --devices 2 or more."
        )
    if require_float(config.optim.swa_fraction):
        raise ConfigError(
            f"{how} together with optim.swa_fraction={config.optim.swa_fraction}: no process holds "
            f"the whole network to average it. Take optim.swa_fraction=0."
        )
    if trainer.compile:
        raise ConfigError(f"{how} together with trainer.compile=true. Leave one of them out.")
