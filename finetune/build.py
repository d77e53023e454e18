"""From the config to objects: the one place where both meet."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor

from finetune.bundle import Card
from finetune.config.auto import Facts, auto_values
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.augment import EvalTransform, train_transform
from finetune.data.dataset import ImageDataset
from finetune.data.manifest import Manifest
from finetune.data.sampler import SAMPLERS, Weights, effective_batch_size
from finetune.errors import ConfigError, DataError, FinetuneError
from finetune.lookup import check_params, look_up
from finetune.losses import LOSSES, balanced_class_weights
from finetune.machine import free_cores, resolve_accelerator
from finetune.models.backbone import Network, create_network
from finetune.models.classifier import BatchNormMode, ImageClassifier
from finetune.models.groups import layer_groups
from finetune.models.weights import is_pretrained
from finetune.training.datamodule import ImageDataModule, Loading
from finetune.training.lr_schedule import LR_SCHEDULES, warmed_up
from finetune.training.module import ClassificationModule, Recipe
from finetune.training.param_groups import create_optimizer, learning_rates, param_groups
from finetune.training.trainer import TrainerOptions
from finetune.training.unfreeze import UNFREEZE, phases
from finetune.types import LoadReport, Phase, Split


@dataclass(frozen=True, slots=True)
class ImbalanceStrategy:
    """What a strategy does, and where.

    Attributes:
        sampler: A name in ``SAMPLERS``.
        class_weights: What the loss does.
    """

    sampler: str
    class_weights: Literal["none", "balanced"]


IMBALANCE: Mapping[str, ImbalanceStrategy] = {
    "none": ImbalanceStrategy("uniform", "none"),
    "weighted": ImbalanceStrategy("weighted", "none"),
    "sqrt": ImbalanceStrategy("sqrt", "none"),
    "class_weights": ImbalanceStrategy("uniform", "balanced"),
}


@dataclass(frozen=True, slots=True)
class Training:
    """Everything of a run but the trainer.

    Attributes:
        config: Resolved: nothing in it is "auto" any more.
        manifest: The images.
        network: The backbone with its load report.
        module: What trains.
        data: What it trains on.
        phases: Which depth in which epochs.
        rates: Peak learning rate of each layer group, from the head.
        batch_size: Global, as it will be.
        steps_per_epoch: Optimizer steps.
    """

    config: Config
    manifest: Manifest
    network: Network
    module: ClassificationModule
    data: ImageDataModule
    phases: tuple[Phase, ...]
    rates: tuple[float, ...]
    batch_size: int
    steps_per_epoch: int


def build_training(config: Config, manifest: Manifest, *, resumed: Card | None = None) -> Training:
    """Return the objects of a run, with every "auto" decided and every name looked up.

    Args:
        config: What was asked for.
        manifest: The images.
        resumed: The card of the checkpoint that will fill the network; the weights that the run
            started from are not needed then.

    Raises:
        ConfigError: A setting that does not exist, cannot apply or contradicts another.
        ModelError: The backbone or its weights.
        DataError: Too few images for the processes.
    """
    config = replaced(config, {"trainer.accelerator": _accelerator(config)})
    network = _create_network(config, manifest, resumed)
    config = replaced(config, auto_values(config, _facts(config, manifest, network)))
    config = _with_imbalance(config)
    _check_machine(config)
    if config.model.batch_norm == "sync":
        network = replace(network, module=convert_sync_batchnorm(network.module))  # type: ignore[no-untyped-call]
    classifier = ImageClassifier(network.module, batch_norm=_batch_norm_mode(config))
    classifier.to(memory_format=torch.channels_last)
    num_groups = len(classifier.groups)
    batch_size = _global_batch(config, manifest)
    steps_per_epoch = len(manifest.of(Split.TRAIN)) // batch_size
    depth_at = _depth_at(config, num_groups)
    schedule = phases(depth_at, num_epochs=_number(config.trainer.epochs))
    rates = learning_rates(
        num_groups,
        lr=_float(config.optim.lr),
        backbone_scale=_float(config.optim.backbone_lr_scale),
        layer_decay=_float(config.optim.layer_decay),
    )
    recipe = Recipe(
        criterion=_criterion(config, manifest),
        depth_at=depth_at,
        make_optimizer=partial(_make_optimizer, config=config, rates=rates),
        lr_factor=_lr_factor(config, schedule, steps_per_epoch),
        seed=config.seed,
    )
    card = build_card(config, manifest, network)
    module = ClassificationModule(
        classifier,
        spec=network.spec,
        classes=manifest.classes,
        recipe=recipe,
        card=card.as_json(),
    )
    data = _data_module(config, manifest, network, batch_size)
    return Training(
        config, manifest, network, module, data, schedule, tuple(rates), batch_size, steps_per_epoch
    )


def build_card(config: Config, manifest: Manifest, network: Network) -> Card:
    """Return what every checkpoint and the bundle say about the model."""
    facts = {
        "weights": network.report.source,
        "seed": config.seed,
        "train_images": dict(
            zip(manifest.classes, manifest.class_counts(Split.TRAIN), strict=True)
        ),
        "imbalance": config.imbalance.strategy,
    }
    return Card(
        backbone=str(network.module.pretrained_cfg["architecture"]),  # type: ignore[index]
        model_args=network.model_args,
        classes=manifest.classes,
        spec=network.spec,
        facts=facts,
    )


def trainer_options(config: Config) -> TrainerOptions:
    """Return how the loop runs, from a resolved config."""
    trainer = config.trainer
    return TrainerOptions(
        epochs=_number(trainer.epochs),
        monitor=f"val/{trainer.monitor}",
        accelerator=trainer.accelerator,
        devices=_number(trainer.devices),
        num_nodes=trainer.num_nodes,
        precision=trainer.precision,
        accumulate=trainer.accumulate,
        gradient_clip=trainer.gradient_clip,
        deterministic=trainer.deterministic,
        early_stopping=trainer.early_stopping,
    )


def _accelerator(config: Config) -> str:
    return resolve_accelerator(config.trainer.accelerator)


def _facts(config: Config, manifest: Manifest, network: Network) -> Facts:
    return Facts(
        class_counts=manifest.class_counts(Split.TRAIN),
        pretrained=is_pretrained(config.model.weights),
        num_groups=len(layer_groups(network.module)),
        image_size=network.spec.input_size[-1],
        fast_bf16=_fast_bf16(config.trainer.accelerator),
        free_cores=free_cores(),
        processes_per_node=_processes_per_node(),
    )


def _fast_bf16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False


def _processes_per_node() -> int:
    """Return how many processes a launcher started on this machine."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))


def _create_network(config: Config, manifest: Manifest, resumed: Card | None) -> Network:
    size = config.data.image_size
    network = create_network(
        config.model.backbone,
        num_classes=len(manifest.classes),
        weights="random" if resumed else config.model.weights,
        image_size=None if size == "auto" else size,
        drop_rate=config.model.drop_rate,
        kwargs=config.model.kwargs,
        pretrained_cfg=config.model.pretrained_cfg,
        seed=config.seed,
    )
    if resumed is None:
        return network
    report = LoadReport(str(resumed.facts["weights"]), 0, 0)
    return replace(network, spec=resumed.spec, report=report)


def _with_imbalance(config: Config) -> Config:
    """Return the config with the strategy's sampler and class weights written out.

    Raises:
        ConfigError: Both would correct for the same imbalance.
    """
    chosen = config.imbalance
    strategy = IMBALANCE[chosen.strategy]
    sampler = strategy.sampler if chosen.sampler == "auto" else chosen.sampler
    weights = strategy.class_weights if chosen.class_weights == "auto" else chosen.class_weights
    if sampler != "uniform" and weights == "balanced":
        raise ConfigError(
            f"imbalance: the sampler '{sampler}' draws rare classes more often, and "
            f"class_weights=balanced weighs them in the loss: together they correct twice. Keep "
            f"one: imbalance.sampler=uniform or imbalance.class_weights=none."
        )
    return replaced(config, {"imbalance.sampler": sampler, "imbalance.class_weights": weights})


def _check_machine(config: Config) -> None:
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
    if trainer.accelerator == "cuda" and _number(trainer.devices) > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={trainer.devices}: this machine shows {torch.cuda.device_count()} "
            f"GPUs. Lower it, or check CUDA_VISIBLE_DEVICES."
        )


def _batch_norm_mode(config: Config) -> BatchNormMode:
    return "frozen" if config.model.batch_norm == "frozen" else "train"


def _global_batch(config: Config, manifest: Manifest) -> int:
    asked = _number(config.trainer.batch_size)
    processes = _number(config.trainer.devices) * config.trainer.num_nodes
    shards = processes * config.trainer.accumulate
    num_images = len(manifest.of(Split.TRAIN))
    if asked % shards:
        raise ConfigError(
            f"trainer.batch_size={asked} does not divide by {processes} processes times "
            f"trainer.accumulate={config.trainer.accumulate}. Take a multiple of {shards}."
        )
    if num_images < shards:
        raise DataError(
            f"{num_images} training images cannot be shared by {shards} batches at once "
            f"({processes} processes times trainer.accumulate={config.trainer.accumulate})."
        )
    return effective_batch_size(asked, num_images=num_images, shards=shards)


def _depth_at(config: Config, num_groups: int) -> Callable[[int], int]:
    schedule = look_up(UNFREEZE, config.unfreeze.name, setting="unfreeze.name")
    params = config.unfreeze.params
    check_params(schedule, params, given=2, setting="unfreeze.params")

    def depth_at(epoch: int) -> int:
        try:
            depth: int = schedule(epoch, num_groups, **params)
        except FinetuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"unfreeze.name={config.unfreeze.name} with unfreeze.params={params} fails in "
                f"epoch {epoch}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= num_groups:
            raise ConfigError(
                f"unfreeze.name={config.unfreeze.name} gives depth {depth!r} for epoch {epoch}; "
                f"the network has {num_groups} layer groups, so it must be 1 to {num_groups}."
            )
        return depth

    return depth_at


def _lr_factor(
    config: Config, schedule: tuple[Phase, ...], steps_per_epoch: int
) -> Callable[[int], float]:
    shape = look_up(LR_SCHEDULES, config.lr_schedule.name, setting="lr_schedule.name")
    num_steps = _number(config.trainer.epochs) * steps_per_epoch
    warmup_steps = round(config.lr_schedule.warmup_fraction * num_steps)
    starts = [phase.first_epoch * steps_per_epoch for phase in schedule]
    params = {"final_factor": config.lr_schedule.final_factor}
    check_params(shape, params, given=1, setting=f"lr_schedule.name={config.lr_schedule.name}")
    shaped = partial(shape, **params)

    def factor(step: int) -> float:
        return warmed_up(
            step,
            shape=shaped,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
            phase_starts=starts,
        )

    return factor


def _make_optimizer(
    classifier: ImageClassifier, *, config: Config, rates: list[float]
) -> torch.optim.Optimizer:
    groups = param_groups(
        classifier.network,
        classifier.groups,
        rates=rates,
        weight_decay=config.optim.weight_decay,
    )
    return create_optimizer(config.optim.name, groups, momentum=config.optim.momentum)


def _criterion(config: Config, manifest: Manifest) -> Callable[[Tensor, Tensor], Tensor]:
    loss = look_up(LOSSES, config.loss.name, setting="loss.name")
    params: dict[str, Any] = {}
    if config.imbalance.class_weights == "balanced":
        params["class_weights_K"] = balanced_class_weights(manifest.class_counts(Split.TRAIN))
    if config.loss.label_smoothing:
        params["label_smoothing"] = config.loss.label_smoothing
    check_params(loss, params, given=2, setting=f"loss.name={config.loss.name}")
    return partial(loss, **params)


def _data_module(
    config: Config, manifest: Manifest, network: Network, batch_size: int
) -> ImageDataModule:
    augment = train_transform(config.augment.name, spec=network.spec, seed=config.seed)
    train, val = manifest.of(Split.TRAIN), manifest.of(Split.VAL)
    max_pixels = int(config.data.max_megapixels * 1e6)
    labels = manifest.labels(train)
    return ImageDataModule(
        ImageDataset(manifest.paths(train), labels, augment, max_pixels=max_pixels),
        ImageDataset(
            manifest.paths(val),
            manifest.labels(val),
            EvalTransform(network.spec),
            max_pixels=max_pixels,
        ),
        weights=_sampling_weights(config, labels, len(manifest.classes)),
        loading=Loading(
            batch_size=batch_size,
            accumulate=config.trainer.accumulate,
            num_workers=_number(config.data.num_workers),
            seed=config.seed,
        ),
    )


def _sampling_weights(config: Config, labels: list[int], num_classes: int) -> Weights | None:
    sampler = look_up(SAMPLERS, config.imbalance.sampler, setting="imbalance.sampler")
    check_params(sampler, {}, given=2, setting="imbalance.sampler")
    weights: Weights | None = sampler(labels, num_classes)
    if weights is None:
        return None
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (len(labels),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ConfigError(
            f"imbalance.sampler={config.imbalance.sampler} gives weights of shape {weights.shape}; "
            f"{len(labels)} are needed, none below 0 and not all of them 0."
        )
    return weights


def _number(value: int | Literal["auto"]) -> int:
    assert value != "auto", "auto is decided before"
    return value


def _float(value: float | Literal["auto"]) -> float:
    assert value != "auto", "auto is decided before"
    return value
