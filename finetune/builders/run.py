"""Objects of a run, built from a config and a manifest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune.builders.augmentation import build_train_transform, find_unmeasured_keys
from finetune.builders.constraints import check_constraints
from finetune.builders.datamodules.cached_datamodule import build_cached_datamodule
from finetune.builders.datamodules.image_datamodule import build_datamodule
from finetune.builders.model_prior import build_class_balance
from finetune.builders.multi_label.label_balance import build_label_balance
from finetune.builders.network import build_card, build_classifier, build_network, describe_run
from finetune.builders.pixel_cache import (
    CacheChoice,
    CachePlan,
    choose_cache,
)
from finetune.builders.probe_plan import describe_flips, plan_probe, resolve_probe_flips
from finetune.builders.resolve import ResolveResult, build_run_spec, resolve_config
from finetune.builders.schedules import (
    build_depth_schedule,
    build_learning_rates,
    build_recipe,
)
from finetune.bundle.model_card import ModelCard
from finetune.config.facts import Choice, Facts
from finetune.config.load import replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.training_data import TrainingData
from finetune.models.backbone import Network
from finetune.probe.linear_probe import ProbePlan
from finetune.system.hardware import prepare_accelerator
from finetune.training.datamodule import ImageDataModule
from finetune.training.module import ClassificationModule
from finetune.types import Phase, Reporter


@dataclass(frozen=True, slots=True)
class Training:
    """Everything of a run but the trainer.

    Attributes:
        config: Resolved config.
        manifest: Images with their splits and duplicate groups.
        data: Files, labels and class counts of the manifest.
        network: Backbone with its load report.
        module: Lightning module.
        datamodule: Lightning data module.
        cache: Plan of the pixel cache; None if every epoch reads images in full.
        no_cache_reason: Reason why every epoch decodes the images; empty if they are cached.
        probe: Plan of the linear probe that the run starts with; None without one.
        phases: Phases of the unfreeze schedule.
        peak_learning_rates: Peak learning rate of each layer group, from the head; those of
            ``optimizer_defaults.HEAD_LR`` until they are measured.
        images_per_epoch: Training images that an epoch draws; only whole batches train.
        batch_size: Global batch size.
        min_micro_batch_size: Images that a process must hold at once: 1 or 2.
        steps_per_epoch: Optimizer steps of an epoch.
        rare_classes: Classes with the preset of rare classes.
        class_weights_start_epoch: Epoch, from 0, from which class weights apply; None without any.
        facts: Facts that the rules were applied to.
        reasons: Reason for each value that a rule chose, by dotted key.
    """

    config: ResolvedConfig
    manifest: Manifest
    data: TrainingData
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
    min_micro_batch_size: int
    steps_per_epoch: int
    rare_classes: tuple[str, ...]
    class_weights_start_epoch: int | None
    facts: Facts
    reasons: Mapping[str, str]

    @property
    def is_probe_only(self) -> bool:
        """Whether the run ends with its linear probe."""
        return self.config.is_probe_only

    @property
    def cache_choice(self) -> CacheChoice:
        """Resolved settings of the pixel cache, with their plan."""
        data = self.config.data
        return CacheChoice(data.cache, data.cache_shorter_side, self.cache, self.no_cache_reason)


def build_training(
    config: Config,
    manifest: Manifest,
    *,
    checkpoint_card: ModelCard | None = None,
    is_resumed: bool = False,
) -> Training:
    """Return the objects of a run, with every "auto" resolved and every constraint checked.

    Args:
        config: Config as given.
        manifest: Images with their splits.
        checkpoint_card: Model card of the checkpoint that will be loaded, instead of the weights
            that the run started from; None without one.
        is_resumed: Whether the run exists already: its pixels stay the same, and what an older
            release wrote into its config is accepted.

    Raises:
        ConfigError: A setting does not exist, cannot apply or contradicts another.
        ModelError: The backbone or its weights do not exist or do not fit.
        DataError: There are too few images for the processes.
    """
    if config.trainer.deterministic:
        # cuBLAS reads it once, at the first use of a GPU, which is before Lightning would set it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator = prepare_accelerator(config.trainer.accelerator)
    data = TrainingData.from_manifest(manifest)
    network = build_network(
        config.model,
        num_classes=len(data.classes),
        num_channels=config.data.channels,
        image_size=None if config.data.image_size == "auto" else config.data.image_size,
        seed=config.seed,
        checkpoint_card=checkpoint_card,
    )
    resolved = resolve_config(
        replace_values(config, {"trainer.accelerator": accelerator}),
        data,
        network,
        is_resumed=is_resumed,
    )
    return _assemble(resolved, manifest, data, network, is_resumed=is_resumed)


def update_training(training: Training, choices: Mapping[str, Choice]) -> Training:
    """Return the training with other settings, and the same weights, images and caches.

    Args:
        training: Objects of the run, with or without its cache enabled.
        choices: New values with reasons, by dotted key; none may concern the network or the images.

    Raises:
        ConfigError: A setting cannot apply or contradicts another.
    """
    values = {key: choice.value for key, choice in choices.items()}
    reasons = {key: choice.reason for key, choice in choices.items() if choice.reason}
    resolved = ResolveResult(
        replace_values(training.config, values), training.facts, {**training.reasons, **reasons}
    )
    updated = _assemble(
        resolved,
        training.manifest,
        training.data,
        training.network,
        is_resumed=True,
        previous=training,
    )
    return replace(updated, datamodule=updated.datamodule.replace_sources(training.datamodule))


def _assemble(
    resolved: ResolveResult,
    manifest: Manifest,
    data: TrainingData,
    network: Network,
    *,
    is_resumed: bool,
    previous: Training | None = None,
) -> Training:
    """Build the objects of a resolved config, from its schedules to its caches.

    The classifier and the plan of the cache are those of a previous training, if there is one.
    """
    config = resolved.config
    build_balance = build_label_balance if data.is_multi_label else build_class_balance
    balance = build_balance(config, data)
    is_measured = config.trainer.train_eval == "on" and len(data.val) > 0
    train_eval_rows = data.sample_train_rows(seed=config.split_seed) if is_measured else None
    depth_schedule = build_depth_schedule(config.unfreeze, resolved.facts.num_groups)
    run = build_run_spec(resolved, data, balance, depth_schedule)
    check_constraints(run)
    classifier = build_classifier(run, network) if previous is None else previous.module.classifier
    network = replace(network, module=classifier.network)
    transform = build_train_transform(config, data, network)
    peak_learning_rates = build_learning_rates(config.optim, len(classifier.groups))
    recipe = build_recipe(run, balance, depth_schedule, peak_learning_rates, classifier.groups)
    is_flipped = resolve_probe_flips(config, transform, num_images=len(data.train))
    if not (
        is_flipped and config.probe.hflip == "auto" and "hflip" in find_unmeasured_keys(config)
    ):
        config = replace_values(config, {"probe.hflip": "on" if is_flipped else "off"})
    probe = plan_probe(
        config,
        data,
        network,
        balance,
        is_flipped=is_flipped,
        make_optimizer=recipe.make_optimizer,
        batch_size=run.batch_size,
        train_eval_rows=train_eval_rows,
    )
    last_stage = None if probe is None else probe.last_stage
    cache = (
        choose_cache(
            config,
            data,
            transform,
            network.spec,
            train_eval_rows=train_eval_rows,
            is_resumed=is_resumed,
            reserved_bytes=0 if last_stage is None else last_stage.num_bytes,
        )
        if previous is None
        else previous.cache_choice
    )
    facts = {
        **describe_run(config, data, network),
        **describe_flips(config, transform),
    }
    card = build_card(
        network,
        data.classes,
        priors=None if data.is_multi_label else balance.priors,
        is_multi_label=data.is_multi_label,
        options=config.data.read_options,
        facts=facts,
    )
    return Training(
        config=replace_values(
            config,
            {"data.cache": cache.location, "data.cache_shorter_side": cache.shorter_side},
        ),
        manifest=manifest,
        data=data,
        network=network,
        module=ClassificationModule(
            classifier,
            spec=network.spec,
            classes=data.classes,
            recipe=recipe,
            card=card.to_json(),
        ),
        datamodule=build_datamodule(
            config,
            data,
            transform,
            network.spec,
            sampling_schedule=balance.sampling_schedule,
            batch_size=run.batch_size,
            train_eval_rows=train_eval_rows,
        ),
        cache=cache.plan,
        no_cache_reason=cache.disabled_reason,
        probe=probe,
        phases=tuple(run.phases),
        peak_learning_rates=tuple(peak_learning_rates),
        images_per_epoch=run.num_images,
        batch_size=run.batch_size,
        min_micro_batch_size=run.min_micro_batch_size,
        steps_per_epoch=run.steps_per_epoch,
        rare_classes=tuple(run.rare_classes),
        class_weights_start_epoch=(
            None if balance.class_weights is None else balance.class_weights.start_epoch
        ),
        facts=resolved.facts,
        reasons=resolved.reasons,
    )


def enable_cache(training: Training, *, reporter: Reporter) -> Training:
    """Return the training with a data module that reads from the cache, which is filled now.

    Raises:
        DataError: A file can no longer be read.
        StorageError: The disk is full or fails.
    """
    if training.cache is None:
        return training
    return replace(
        training,
        datamodule=build_cached_datamodule(training.datamodule, training.cache, reporter=reporter),
    )


def get_micro_batch_size(training: Training) -> int:
    """Return the number of images that a process holds at once."""
    return training.batch_size // training.config.num_micro_batches
