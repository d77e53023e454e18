"""All objects of a run, from a config and a manifest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from timm.layers.norm_act import convert_sync_batchnorm

from finetune.builders.augmentation import make_augment
from finetune.builders.batch_limits import check_lone_image, fewest_images
from finetune.builders.model_prior import run_priors
from finetune.builders.network import checkpoint_activations, make_network
from finetune.builders.pixel_cache import CachePlan, cached, choose_cache
from finetune.builders.probe_plan import check_probe, mirror_facts, plan_probe, with_older_defaults
from finetune.builders.resolve import (
    check_strategy,
    decimal,
    global_batch,
    images_at_once,
    is_probe_only,
    number,
    resolve,
)
from finetune.builders.sampling import make_sampling
from finetune.builders.schedules import make_recipe
from finetune.bundle.model_card import Card
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingAt, num_drawn
from finetune.data.transforms.eval_transform import EvalTransform, Transform
from finetune.models.backbone import Network
from finetune.models.classifier import BatchNormMode, ImageClassifier
from finetune.probe.linear_probe import ProbePlan
from finetune.system.hardware import resolve_accelerator
from finetune.training.datamodule import ImageDataModule, Loading
from finetune.training.module import ClassificationModule
from finetune.training.param_groups import learning_rates
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
        data: What it trains on.
        cache: How its pixels are kept; None where they are read from the files in every epoch.
        no_cache: Why they are not kept.
        probe: What training begins with; None begins with the head as it is.
        phases: Which depth in which epochs.
        rates: Peak learning rate of each layer group, from the head.
        images_per_epoch: That are drawn, as they are or again; whole batches of them train.
        batch_size: Global, as it will be.
        steps_per_epoch: Optimizer steps.
        reasons: Why values of the recipe were chosen, by dotted key.
    """

    config: Config
    manifest: Manifest
    network: Network
    module: ClassificationModule
    data: ImageDataModule
    cache: CachePlan | None
    no_cache: str
    probe: ProbePlan | None
    phases: tuple[Phase, ...]
    rates: tuple[float, ...]
    images_per_epoch: int
    batch_size: int
    steps_per_epoch: int
    reasons: Mapping[str, str]

    @property
    def is_probe_only(self) -> bool:
        """Whether nothing follows the probe."""
        return is_probe_only(self.config)

    @property
    def fewest_images(self) -> int:
        """How many images a process must hold at once: 1, or 2 where one cannot stand alone."""
        return fewest_images(self.config, self.module.classifier, self.phases)


def build_training(
    config: Config, manifest: Manifest, *, resumed: Card | None = None, going_on: bool = False
) -> Training:
    """Return the objects of a run, with every "auto" decided and every name looked up.

    Args:
        config: What was asked for.
        manifest: The images.
        resumed: The card of the checkpoint that will fill the network; the weights that the run
            started from are not needed then.
        going_on: Whether the run has begun, so that its pixels stay as they are, and what an older
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
    config = replaced(config, {"trainer.accelerator": accelerator})
    network = make_network(config, manifest, resumed)
    resolved = resolve(config, manifest, network)
    config = with_older_defaults(resolved.config) if going_on else resolved.config
    check_probe(config, network)
    if config.model.batch_norm == "sync":
        network = replace(network, module=convert_sync_batchnorm(network.module))  # type: ignore[no-untyped-call]
    classifier = ImageClassifier(network.module, batch_norm=_batch_norm_mode(config))
    classifier.to(memory_format=torch.channels_last)
    if config.model.grad_checkpointing:
        checkpoint_activations(config, classifier)
    sampling = make_sampling(config, manifest)
    num_images = num_drawn(sampling(0), len(manifest.of(Split.TRAIN)))
    batch_size = global_batch(config, num_images=num_images)
    steps_per_epoch = num_images // batch_size
    rates = learning_rates(
        len(classifier.groups),
        lr=decimal(config.optim.lr),
        backbone_scale=decimal(config.optim.backbone_lr_scale),
        layer_decay=decimal(config.optim.layer_decay),
    )
    recipe, schedule = make_recipe(
        config,
        manifest,
        sampling=sampling,
        num_groups=len(classifier.groups),
        rates=rates,
        steps_per_epoch=steps_per_epoch,
    )
    check_strategy(config, [phase.depth for phase in schedule])
    check_lone_image(config, classifier, schedule, batch_size)
    augment = make_augment(config, manifest, network)
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
        card=build_card(config, manifest, network, augment, sampling=sampling).as_json(),
    )
    tail = None if probe is None else probe.tail
    choice = choose_cache(
        config,
        manifest,
        augment,
        network.spec,
        going_on=going_on,
        beside_bytes=0 if tail is None else tail.num_bytes,
    )
    return Training(
        config=choice.config,
        manifest=manifest,
        network=network,
        module=module,
        data=_data_module(config, manifest, augment, network.spec, batch_size, sampling=sampling),
        cache=choice.plan,
        no_cache=choice.why_not,
        probe=probe,
        phases=schedule,
        rates=tuple(rates),
        images_per_epoch=num_images,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        reasons=resolved.reasons,
    )


def with_cache(training: Training, *, reporter: Reporter) -> Training:
    """Return the training over stored pixels, which are decoded now where they are not there yet.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
    """
    if training.cache is None:
        return training
    return replace(training, data=cached(training.data, training.cache, reporter=reporter))


def batch_in_memory(training: Training) -> int:
    """Return the images that a process holds at once."""
    return images_at_once(training.config, training.batch_size)


def trainer_options(config: Config) -> TrainerOptions:
    """Return how the loop runs, from a resolved config."""
    trainer = config.trainer
    return TrainerOptions(
        epochs=number(trainer.epochs),
        monitor=f"val/{trainer.monitor}",
        accelerator=trainer.accelerator,
        devices=number(trainer.devices),
        num_nodes=number(trainer.num_nodes),
        precision=trainer.precision,
        accumulate=number(trainer.accumulate),
        gradient_clip=trainer.gradient_clip,
        deterministic=trainer.deterministic,
        early_stopping=trainer.early_stopping,
        strategy=trainer.strategy,
        live_buffers=_batch_norm_mode(config) == "train",
        collective_timeout_seconds=trainer.collective_timeout_seconds,
        save_every_minutes=config.checkpoint.every_minutes,
    )


def build_card(
    config: Config,
    manifest: Manifest,
    network: Network,
    augment: Transform,
    *,
    sampling: SamplingAt,
) -> Card:
    """Return what every checkpoint and the bundle say about the model."""
    facts = {
        "weights": network.report.source,
        "seed": config.seed,
        "train_images": dict(
            zip(manifest.classes, manifest.class_counts(Split.TRAIN), strict=True)
        ),
        "imbalance": config.imbalance.strategy,
        **mirror_facts(config, augment),
    }
    return Card(
        backbone=str(network.module.pretrained_cfg["architecture"]),  # type: ignore[index]
        model_args=network.model_args,
        classes=manifest.classes,
        spec=network.spec,
        facts=facts,
        priors=run_priors(config, manifest, sampling),
    )


def _batch_norm_mode(config: Config) -> BatchNormMode:
    return "frozen" if config.model.batch_norm == "frozen" else "train"


def _data_module(
    config: Config,
    manifest: Manifest,
    augment: Transform,
    spec: PreprocessSpec,
    batch_size: int,
    *,
    sampling: SamplingAt,
) -> ImageDataModule:
    train, val = manifest.of(Split.TRAIN), manifest.of(Split.VAL)
    max_pixels = int(config.data.max_megapixels * 1e6)
    return ImageDataModule(
        ImageDataset(
            FileSource(manifest.paths(train), max_pixels=max_pixels),
            manifest.labels(train),
            augment,
        ),
        ImageDataset(
            FileSource(manifest.paths(val), max_pixels=max_pixels),
            manifest.labels(val),
            EvalTransform(spec),
        ),
        sampling=sampling,
        loading=Loading(
            batch_size=batch_size,
            accumulate=number(config.trainer.accumulate),
            num_workers=number(config.data.num_workers),
            seed=config.seed,
        ),
    )
