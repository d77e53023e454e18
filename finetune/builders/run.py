"""All objects of a run, from a config and a manifest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from timm.layers.norm_act import convert_sync_batchnorm

from finetune.builders.augmentation import build_augmentation
from finetune.builders.batch_limits import check_micro_batch_size, compute_min_micro_batch_size
from finetune.builders.model_prior import compute_run_priors
from finetune.builders.network import build_network, enable_grad_checkpointing
from finetune.builders.pixel_cache import CachePlan, build_cached_datamodule, choose_cache
from finetune.builders.probe_plan import (
    check_probe,
    describe_flips,
    migrate_legacy_config,
    plan_probe,
)
from finetune.builders.resolve import (
    check_strategy,
    compute_global_batch_size,
    compute_micro_batch_size,
    is_probe_only,
    require_float,
    require_int,
    resolve_config,
)
from finetune.builders.sampling import build_sampling_schedule
from finetune.builders.schedules import build_recipe
from finetune.bundle.model_card import ModelCard
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingSchedule, count_draws
from finetune.data.transforms.eval_transform import EvalTransform, Transform
from finetune.models.backbone import Network
from finetune.models.classifier import BatchNormMode, ImageClassifier
from finetune.probe.linear_probe import ProbePlan
from finetune.system.hardware import resolve_accelerator
from finetune.training.datamodule import ImageDataModule, LoaderOptions
from finetune.training.module import ClassificationModule
from finetune.training.param_groups import compute_learning_rates
from finetune.training.trainer import TrainerOptions
from finetune.types import Phase, PreprocessSpec, Reporter, Split


@dataclass(frozen=True, slots=True)
class Training:
    """Everything of a run but the trainer.

    Attributes:
        config: Resolved: nothing in it is "auto" any more.
        manifest: The images.
        network: The backbone with its load report.
        module: What trains.
        datamodule: What it trains on.
        cache: How its pixels are kept; None where they are read from the files in every epoch.
        no_cache_reason: Why they are not kept.
        probe: What training begins with; None begins with the head as it is.
        phases: Which depth in which epochs.
        peak_learning_rates: Peak learning rate of each layer group, from the head.
        images_per_epoch: That are drawn, as they are or again; whole batches of them train.
        batch_size: Global, as it will be.
        steps_per_epoch: Optimizer steps.
        reasons: Why values of the recipe were chosen, by dotted key.
    """

    config: Config
    manifest: Manifest
    network: Network
    module: ClassificationModule
    datamodule: ImageDataModule
    cache: CachePlan | None
    no_cache_reason: str
    probe: ProbePlan | None
    phases: tuple[Phase, ...]
    peak_learning_rates: tuple[float, ...]
    images_per_epoch: int
    batch_size: int
    steps_per_epoch: int
    reasons: Mapping[str, str]

    @property
    def is_probe_only(self) -> bool:
        """Whether nothing follows the probe."""
        return is_probe_only(self.config)

    @property
    def min_micro_batch_size(self) -> int:
        """How many images a process must hold at once: 1, or 2 where one cannot stand alone."""
        return compute_min_micro_batch_size(self.config, self.module.classifier, self.phases)


def build_training(
    config: Config,
    manifest: Manifest,
    *,
    checkpoint_card: ModelCard | None = None,
    is_resumed: bool = False,
) -> Training:
    """Return the objects of a run, with every "auto" decided and every name looked up.

    Args:
        config: What was asked for.
        manifest: The images.
        checkpoint_card: The card of the checkpoint that will fill the network; the weights that the run
            started from are not needed then.
        is_resumed: Whether the run has begun, so that its pixels stay as they are, and what an older
            release wrote into its config is understood.

    Raises:
        ConfigError: A setting that does not exist, cannot apply or contradicts another.
        ModelError: The backbone or its weights.
        DataError: Too few images for the processes.
    """
    if config.trainer.deterministic:
        # read once, at the first use of a GPU, which is before Lightning would set it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator = resolve_accelerator(config.trainer.accelerator)
    config = replace_values(config, {"trainer.accelerator": accelerator})
    network = build_network(config, manifest, checkpoint_card)
    resolved = resolve_config(config, manifest, network)
    config = migrate_legacy_config(resolved.config) if is_resumed else resolved.config
    check_probe(config, network)
    if config.model.batch_norm == "sync":
        network = replace(network, module=convert_sync_batchnorm(network.module))  # type: ignore[no-untyped-call]
    classifier = ImageClassifier(network.module, batch_norm=_get_batch_norm_mode(config))
    classifier.to(memory_format=torch.channels_last)
    if config.model.grad_checkpointing:
        enable_grad_checkpointing(config, classifier)
    sampling = build_sampling_schedule(config, manifest)
    num_images = count_draws(sampling(0), len(manifest.get_samples(Split.TRAIN)))
    batch_size = compute_global_batch_size(config, num_images=num_images)
    steps_per_epoch = num_images // batch_size
    rates = compute_learning_rates(
        len(classifier.groups),
        lr=require_float(config.optim.lr),
        backbone_scale=require_float(config.optim.backbone_lr_scale),
        layer_decay=require_float(config.optim.layer_decay),
    )
    recipe, schedule = build_recipe(
        config,
        manifest,
        sampling=sampling,
        num_groups=len(classifier.groups),
        peak_learning_rates=rates,
        steps_per_epoch=steps_per_epoch,
    )
    check_strategy(config, [phase.depth for phase in schedule])
    check_micro_batch_size(config, classifier, schedule, batch_size)
    augment = build_augmentation(config, manifest, network)
    config, probe = plan_probe(
        config,
        manifest,
        network,
        augment,
        sampling=sampling,
        make_optimizer=recipe.make_optimizer,
        batch_size=batch_size,
    )
    module = ClassificationModule(
        classifier,
        spec=network.spec,
        classes=manifest.classes,
        recipe=recipe,
        card=build_card(config, manifest, network, augment, sampling=sampling).to_json(),
    )
    tail = None if probe is None else probe.last_stage
    choice = choose_cache(
        config,
        manifest,
        augment,
        network.spec,
        is_resumed=is_resumed,
        reserved_bytes=0 if tail is None else tail.num_bytes,
    )
    return Training(
        config=choice.config,
        manifest=manifest,
        network=network,
        module=module,
        datamodule=_build_datamodule(
            config, manifest, augment, network.spec, batch_size, sampling=sampling
        ),
        cache=choice.plan,
        no_cache_reason=choice.reason,
        probe=probe,
        phases=schedule,
        peak_learning_rates=tuple(rates),
        images_per_epoch=num_images,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        reasons=resolved.reasons,
    )


def enable_cache(training: Training, *, reporter: Reporter) -> Training:
    """Return the training over stored pixels, which are decoded now where they are not there yet.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
    """
    if training.cache is None:
        return training
    return replace(
        training,
        datamodule=build_cached_datamodule(training.datamodule, training.cache, reporter=reporter),
    )


def get_micro_batch_size(training: Training) -> int:
    """Return the images that a process holds at once."""
    return compute_micro_batch_size(training.config, training.batch_size)


def build_trainer_options(config: Config) -> TrainerOptions:
    """Return how the loop runs, from a resolved config."""
    trainer = config.trainer
    return TrainerOptions(
        max_epochs=require_int(trainer.epochs),
        monitor=f"val/{trainer.monitor}",
        accelerator=trainer.accelerator,
        devices=require_int(trainer.devices),
        num_nodes=require_int(trainer.num_nodes),
        precision=trainer.precision,
        accumulate_grad_batches=require_int(trainer.accumulate_grad_batches),
        gradient_clip=trainer.gradient_clip_val,
        deterministic=trainer.deterministic,
        patience=trainer.early_stopping_patience,
        strategy=trainer.strategy,
        live_buffers=_get_batch_norm_mode(config) == "train",
        collective_timeout_seconds=trainer.collective_timeout_seconds,
        checkpoint_interval_minutes=config.checkpoint.every_minutes,
    )


def build_card(
    config: Config,
    manifest: Manifest,
    network: Network,
    train_transform: Transform,
    *,
    sampling: SamplingSchedule,
) -> ModelCard:
    """Return what every checkpoint and the bundle say about the model."""
    facts = {
        "weights": network.report.source,
        "seed": config.seed,
        "train_images": dict(
            zip(manifest.classes, manifest.count_per_class(Split.TRAIN), strict=True)
        ),
        "imbalance": config.imbalance.strategy,
        **describe_flips(config, train_transform),
    }
    return ModelCard(
        backbone=str(network.module.pretrained_cfg["architecture"]),  # type: ignore[index]
        model_args=network.model_args,
        classes=manifest.classes,
        spec=network.spec,
        facts=facts,
        priors=compute_run_priors(config, manifest, sampling),
    )


def _get_batch_norm_mode(config: Config) -> BatchNormMode:
    return "frozen" if config.model.batch_norm == "frozen" else "train"


def _build_datamodule(
    config: Config,
    manifest: Manifest,
    train_transform: Transform,
    spec: PreprocessSpec,
    batch_size: int,
    *,
    sampling: SamplingSchedule,
) -> ImageDataModule:
    train, val = manifest.get_samples(Split.TRAIN), manifest.get_samples(Split.VAL)
    max_pixels = int(config.data.max_megapixels * 1e6)
    return ImageDataModule(
        ImageDataset(
            FileSource(manifest.resolve_paths(train), max_pixels=max_pixels),
            manifest.encode_labels(train),
            train_transform,
        ),
        ImageDataset(
            FileSource(manifest.resolve_paths(val), max_pixels=max_pixels),
            manifest.encode_labels(val),
            EvalTransform(spec),
        ),
        sampling_schedule=sampling,
        loader_options=LoaderOptions(
            batch_size=batch_size,
            accumulate_grad_batches=require_int(config.trainer.accumulate_grad_batches),
            num_workers=require_int(config.data.num_workers),
            seed=config.seed,
        ),
    )
