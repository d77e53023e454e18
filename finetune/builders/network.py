"""Backbone, classifier and model card of a run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm

from finetune.builders.optimization.optimizer_factory import constrain_start
from finetune.builders.resolve import RunSpec
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.initial_weights import describe_weights
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import ModelConfig
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError
from finetune.evaluation.multi_label.label_metrics import DEFAULT_THRESHOLD
from finetune.evaluation.priors import Priors
from finetune.models.backbone import Network, create_network
from finetune.models.classifier import ImageClassifier
from finetune.models.mlp_head import MlpSettings, find_mlp_head
from finetune.types import LoadReport, ReadOptions


def build_network(
    model: ModelConfig,
    *,
    num_classes: int,
    num_channels: int = 3,
    image_size: int | None,
    seed: int,
    checkpoint_card: ModelCard | None,
) -> Network:
    """Return the backbone with its weights, or with random ones that a checkpoint will replace.

    Args:
        model: Section of the config.
        num_classes: Width of the classifier.
        num_channels: Channels of the images.
        image_size: Side of the square input in pixels; None for that of the weights.
        seed: Seed of random weights.
        checkpoint_card: Model card of the checkpoint that will be loaded; None without one.

    Raises:
        ModelError: The backbone or its weights do not exist or do not fit.
    """
    network = create_network(
        model.backbone,
        num_classes=num_classes,
        num_channels=num_channels,
        weights="random" if checkpoint_card else model.weights,
        image_size=image_size,
        drop_rate=model.drop_rate,
        kwargs=model.kwargs,
        pretrained_cfg=model.pretrained_cfg,
        mlp=_build_mlp_settings(model),
        head_init="zero" if model.head_init == "auto" else model.head_init,
        seed=seed,
    )
    if checkpoint_card is None:
        return network
    report = LoadReport(str(checkpoint_card.facts["weights"]), 0, 0)
    return replace(network, spec=checkpoint_card.spec, report=report)


def build_classifier(run: RunSpec, network: Network) -> ImageClassifier:
    """Return the network as a classifier whose layer groups can be frozen, in channels-last format.

    The weights of groups that ever train fulfil ``optim.max_norm``.

    Args:
        run: Resolved run.
        network: Backbone.

    Raises:
        ConfigError: The network does not support ``model.grad_checkpointing``.
    """
    module, model = network.module, run.config.model
    if model.batch_norm == "sync":
        module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    classifier = ImageClassifier(
        module, batch_norm="frozen" if model.batch_norm == "frozen" else "train"
    )
    classifier.to(memory_format=torch.channels_last)
    if model.grad_checkpointing:
        _enable_grad_checkpointing(classifier, model.backbone)
    constrain_start(run.config.optim, classifier, max(run.max_depth, run.config.probe.depth))
    return classifier


def build_card(
    network: Network,
    classes: tuple[str, ...],
    *,
    priors: Priors | None,
    options: ReadOptions,
    facts: Mapping[str, Any],
    is_multi_label: bool = False,
) -> ModelCard:
    """Return the model card of every checkpoint and of the bundle.

    Args:
        network: Backbone.
        classes: Class names in index order.
        priors: Class priors of the run; None for multi-label images.
        options: How image files are read.
        facts: Facts of the run as plain values.
        is_multi_label: Whether an image has any number of labels.
    """
    mlp = find_mlp_head(network.module)
    return ModelCard(
        backbone=str(network.module.pretrained_cfg["architecture"]),  # type: ignore[index]
        model_args=network.model_args,
        classes=classes,
        spec=network.spec,
        facts=facts,
        priors=priors,
        pixel_range=options.pixel_range,
        bit_depth=options.bit_depth,
        head=None if mlp is None else mlp.settings.to_json(),
        thresholds=(DEFAULT_THRESHOLD,) * len(classes) if is_multi_label else None,
    )


def describe_run(config: ResolvedConfig, data: TrainingData, network: Network) -> dict[str, Any]:
    """Return the facts of a run on its model card: weights, seed, images, imbalance, loss."""
    origin = describe_weights(config.model.weights, config.model.backbone)
    return {
        "weights": network.report.source,
        **({} if origin.kind == "random" else origin.to_facts()),
        "seed": config.seed,
        "train_images": dict(zip(data.classes, data.class_counts, strict=True)),
        "imbalance": config.imbalance.strategy,
        "loss": config.loss.name,
    }


def _build_mlp_settings(model: ModelConfig) -> MlpSettings | None:
    options = model.mlp_options
    return None if options is None else MlpSettings(**options.model_dump())


def _enable_grad_checkpointing(classifier: ImageClassifier, backbone: str) -> None:
    try:
        classifier.network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.grad_checkpointing=true: '{backbone}' does not support activation "
            f"checkpointing. Set trainer.accumulate_grad_batches to save memory instead."
        ) from error
