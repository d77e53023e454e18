"""Check of a config before any image is read: names, parameters and contradictions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from finetune.builders.constraints import check_constraints
from finetune.builders.constraints.probe_rules import check_probe_settings
from finetune.builders.criterion import check_label_smoothing, check_loss_params
from finetune.builders.model_prior import build_class_balance
from finetune.builders.multi_label.label_balance import build_label_balance
from finetune.builders.optimization.optimizer_factory import build_optimizer_factory
from finetune.builders.resolve import RunSpec, resolve_from_facts
from finetune.builders.schedules import (
    build_depth_schedule,
    build_lr_lambda,
    build_momentum_lambda,
    build_plateau_settings,
)
from finetune.config.facts import Facts
from finetune.config.load import replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.data.training_data import LabeledImages, TrainingData
from finetune.distributed.launch import detect_launch
from finetune.errors import FinetuneError
from finetune.lookup import look_up
from finetune.losses import LOSSES, MULTI_LABEL_LOSSES
from finetune.models.backbone import check_backbone_name, create_meta_network
from finetune.models.classifier import has_batch_norm
from finetune.models.head import find_linear_head
from finetune.models.layer_groups import find_layer_groups
from finetune.models.pretrained.creation_errors import check_kwargs
from finetune.models.pretrained.preprocessing_values import check_preprocessing
from finetune.models.pretrained.weights import is_pretrained, resolve_weights_source
from finetune.system.hardware import prepare_accelerator
from finetune.training.schedules.unfreeze import compute_phases

_FEW, _MANY = (20, 20), (40_000, 100)
"""Training images of two classes, of data sets that differ in all that settings follow from."""


def check_before_images(config: Config) -> None:
    """Check what no image is needed for, so that a mistake is found before they are read.

    Rules for "auto" and constraints between settings depend on the images. They are tried on the
    facts of two data sets that differ as much as possible: an error that both have in the same
    words does not depend on the images, if multi-label images have one, too. What depends on the
    images is checked when they are known.

    Args:
        config: Config of a new run, as given.

    Raises:
        ConfigError: A component does not exist or does not take its parameters, or settings
            contradict each other, whatever the images are.
        ModelError: The backbone does not exist, its settings are invalid, or its weights are
            neither in the cache nor reachable.
    """
    model = config.model
    check_backbone_name(model.backbone)
    check_kwargs(model.kwargs)
    check_preprocessing(model.pretrained_cfg)
    if config.loss.name != "auto":
        loss = look_up(LOSSES, config.loss.name, setting="loss.name")
        check_loss_params(loss, config.loss.params)
        if config.loss.label_smoothing != "auto" and config.loss.label_smoothing > 0:
            check_label_smoothing(loss, config.loss.name, config.loss.label_smoothing)
    accelerator = prepare_accelerator(config.trainer.accelerator)
    config = replace_values(config, {"trainer.accelerator": accelerator})
    few, many, multi_label = (
        _find_error(config, facts) for facts in _imagine_facts(config, accelerator)
    )
    if few is not None and multi_label is not None and str(few) == str(many):
        raise multi_label if config.loss.name in MULTI_LABEL_LOSSES else few
    if model.weights == "hub":
        resolve_weights_source(model.weights, model.backbone)  # reads no file


def _imagine_facts(config: Config, accelerator: str) -> Iterator[Facts]:
    """Yield the facts of few images, of many, and of images with any number of labels.

    What is unknown of the network before it is built differs between the first two.
    """
    network = create_meta_network(config.model.backbone, kwargs=config.model.kwargs)
    launch = detect_launch()
    few = Facts(
        class_counts=_FEW,
        num_val_images=8,
        is_pretrained=is_pretrained(config.model.weights),
        num_groups=5,
        has_linear_head=config.model.head == "linear",
        supports_any_size=False,
        image_size=_imagine_image_size(config),
        has_fast_bf16=False,
        free_cores=1,
        accelerator=accelerator,
        processes_per_node=1 if launch is None else launch.local_world_size,
        num_nodes=1 if launch is None else launch.num_nodes,
    )
    many = replace(
        few,
        class_counts=_MANY,
        num_val_images=10_000,
        has_fast_bf16=True,
        supports_any_size=True,
        free_cores=64,
    )
    if network is None:
        many = replace(many, num_groups=20, has_linear_head=False, has_batch_norm=False)
    else:
        few, many = (_add_network(facts, config, network) for facts in (few, many))
    yield few
    yield many
    yield replace(few, multi_label_images=30)


def _imagine_image_size(config: Config) -> int:
    """Return a size of the network, which is unknown, that no setting contradicts."""
    sizes = config.data.train_image_size
    if sizes != "auto":
        return sizes[-1]
    return 224 if config.data.image_size == "auto" else config.data.image_size


def _add_network(facts: Facts, config: Config, network: nn.Module) -> Facts:
    is_linear = config.model.head == "linear" and find_linear_head(network) is not None
    return replace(
        facts,
        num_groups=len(find_layer_groups(network)),
        has_linear_head=is_linear,
        has_batch_norm=has_batch_norm(network),
    )


def _find_error(config: Config, facts: Facts) -> FinetuneError | None:
    """Return the error that a run with such images would have; None if there is none."""
    try:
        resolved = resolve_from_facts(config, facts)
        run_config = resolved.config
        num_epochs = run_config.trainer.epochs
        depth_schedule = build_depth_schedule(run_config.unfreeze, facts.num_groups)
        run = RunSpec(
            config=run_config,
            facts=facts,
            phases=compute_phases(depth_schedule, num_epochs=num_epochs),
            num_images=facts.num_images,
            # whether there are rare classes depends on the images
            rare_classes=("rare",),
            num_gpus=torch.cuda.device_count() if facts.accelerator == "cuda" else 0,
        )
        check_constraints(run)
        check_probe_settings(config, run_config)
        _check_balance(run_config, facts)
        lr_schedule, optim = run_config.lr_schedule, run_config.optim
        build_lr_lambda(lr_schedule, num_steps=run.num_steps, num_epochs=num_epochs)
        build_plateau_settings(lr_schedule, monitor="val/loss")
        build_momentum_lambda(optim, lr_schedule, num_steps=run.num_steps)
        build_optimizer_factory(optim, peak_learning_rates=[1.0], is_fused=False)
    except FinetuneError as error:
        return error
    return None


def _check_balance(config: ResolvedConfig, facts: Facts) -> None:
    """Check the parameters of the sampler, the class weights and the loss on imagined labels.

    Functions of the user may depend on the number of classes and are called with the real images.

    Raises:
        ConfigError: One of them fails.
    """
    if ":" in config.loss.name or ":" in config.imbalance.sampler:
        return
    num_classes = len(facts.class_counts)
    labels = np.repeat(np.arange(num_classes), facts.class_counts)
    is_multi_label = facts.multi_label_images is not None
    images = LabeledImages(
        paths=[Path()] * len(labels),
        labels=labels,
        groups=np.arange(len(labels)),
        multi_hot=np.eye(num_classes, dtype=np.float32)[labels] if is_multi_label else None,
    )
    classes = tuple(f"class {index}" for index in range(num_classes))
    data = TrainingData(Path(), classes, images, images, images, tuple(facts.class_counts))
    build_balance = build_label_balance if is_multi_label else build_class_balance
    build_balance(config, data)
