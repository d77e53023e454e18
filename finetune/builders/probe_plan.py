"""Plan of the linear probe that a run starts with, and of the last stage if it is trained too."""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.builders.criterion import compute_probe_logit_offset
from finetune.builders.model_prior import ClassBalance
from finetune.builders.optimization.optimizer_factory import get_head_max_norm
from finetune.builders.schedules import build_lr_lambda
from finetune.config.resolved import ResolvedConfig
from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.samplers.sampling_weights import compute_expected_draws
from finetune.data.training_data import LabeledImages, TrainingData
from finetune.data.transforms.eval_transform import Transform
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.models.classifier import eval_mode
from finetune.models.graph_split import split_last_groups
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import ActivationLayout
from finetune.probe.features.views import ViewSpec
from finetune.probe.last_stage import LastStagePlan, OptimizerFactory
from finetune.probe.last_stage_training import LastStageSettings
from finetune.probe.linear_probe import ProbeImages, ProbePlan
from finetune.units import format_bytes

FLIP_IMAGE_LIMIT = 1_000
"""Training images below which a probe is also fitted to flipped images if fine-tuning follows.

Up to then their features are mostly there, since the augmentation is measured on them.
"""


def resolve_probe_flips(
    config: ResolvedConfig,
    transform: Transform,
    *,
    num_images: int,
    flip_image_limit: int = FLIP_IMAGE_LIMIT,
) -> bool:
    """Return whether the probe is also fitted to flipped images.

    Args:
        config: Resolved config.
        transform: Transform of the training images.
        num_images: Training images.
        flip_image_limit: Number of images from which fine-tuning makes flips unnecessary.
    """
    if config.probe.hflip != "auto":
        return config.probe.hflip == "on"
    if config.is_probe_only:
        # the head alone gains too little from a second forward pass (docs/design/probe.md)
        return transform.has_flip and config.probe.depth > 1
    return transform.has_flip and num_images < flip_image_limit


def plan_probe(
    config: ResolvedConfig,
    data: TrainingData,
    network: Network,
    balance: ClassBalance,
    *,
    is_flipped: bool,
    make_optimizer: OptimizerFactory,
    batch_size: int,
    train_eval_rows: NDArray[np.int64] | None = None,
) -> ProbePlan | None:
    """Return the plan of the linear probe; None without one.

    Imbalanced classes are treated as in the last epoch: the weight of an image is its expected
    number of draws then, times the weight of its class in the loss, and logits are adjusted as by
    the loss. A probe cannot be fitted with focal, margin or custom losses; cross-entropy with these
    weights replaces them.

    Args:
        config: Resolved config.
        data: Images of the run.
        network: Backbone.
        balance: Treatment of imbalanced classes.
        is_flipped: Whether the probe is also fitted to flipped images.
        make_optimizer: Optimizer factory of the run.
        batch_size: Images of a step.
        train_eval_rows: Training images that are measured as validation images are; None for none.

    Raises:
        ConfigError: The last stage cannot be trained as requested.
    """
    if config.probe.enabled == "off":
        return None
    views = ViewSpec(flipped=is_flipped, num_crops=config.probe.num_crops)
    return ProbePlan(
        train=ProbeImages(
            data.train.paths,
            data.train.labels,
            _compute_image_weights(balance, data.train, last_epoch=config.trainer.epochs - 1),
            data.train.groups,
            data.train.multi_hot,
        ),
        val=ProbeImages(
            data.val.paths,
            data.val.labels,
            np.ones(len(data.val)),
            multi_hot=data.val.multi_hot,
        ),
        classes=data.classes,
        views=views,
        extraction=ExtractionPlan(
            model_args_json=json.dumps(network.model_args, sort_keys=True),
            spec=network.spec,
            precision=config.trainer.precision,
            root=resolve_cache_root(config.data.cache),
            owner=str(data.root),
            limit_bytes=config.cache.max_bytes,
            num_workers=config.data.num_workers,
            options=config.data.read_options,
            with_stages=config.probe.stages == "on" and not data.is_multi_label,
        ),
        logit_offset=compute_probe_logit_offset(config.loss, data.class_counts),
        eval_logit_shift=balance.logit_shift,
        last_stage=plan_last_stage(
            config,
            network,
            make_optimizer,
            num_images=len(data.train),
            num_views=len(data.train) * len(views.names) + len(data.val),
            batch_size=batch_size,
        ),
        positive_weights=None
        if balance.class_weights is None or not data.is_multi_label
        else balance.class_weights.factors,
        head_max_norm=get_head_max_norm(config.optim),
        train_eval_rows=train_eval_rows,
    )


def plan_last_stage(
    config: ResolvedConfig,
    network: Network,
    make_optimizer: OptimizerFactory,
    *,
    num_images: int,
    num_views: int,
    batch_size: int,
) -> LastStagePlan | None:
    """Return the plan of training the last stage on cached activations; None for the head alone.

    Args:
        config: Resolved config.
        network: Backbone.
        make_optimizer: Optimizer factory of the run.
        num_images: Training images.
        num_views: Views of all training and validation images, whose activations are cached.
        batch_size: Images of a step.

    Raises:
        ConfigError: The network cannot be split there, or the activations exceed the cache.
    """
    depth, num_epochs = config.probe.depth, config.probe.last_stage_epochs
    if depth == 1:
        return None
    layout = _find_activation_layout(network, depth, backbone=config.model.backbone)
    num_bytes = layout.shape.numel() * 4 * num_views
    if num_bytes > config.cache.max_bytes:
        raise ConfigError(
            f"probe.depth={depth} caches {format_bytes(num_bytes)} of activations of {num_views} "
            f"views, more than cache.max_gb={config.cache.max_gb:g}. Increase it, lower "
            f"probe.num_crops, or leave probe.depth out."
        )
    num_steps = num_epochs * -(-num_images // batch_size)
    settings = LastStageSettings(
        num_epochs=num_epochs,
        batch_size=batch_size,
        micro_batch_size=batch_size // config.num_micro_batches,
        lr_factor=build_lr_lambda(config.lr_schedule, num_steps=num_steps, num_epochs=num_epochs),
        gradient_clip=config.trainer.gradient_clip_val,
        precision=config.trainer.precision,
        seed=config.seed,
    )
    return LastStagePlan(
        depth=depth,
        settings=settings,
        make_optimizer=make_optimizer,
        monitor=config.checkpoint.monitor,
        num_bytes=num_bytes,
    )


def describe_flips(config: ResolvedConfig, transform: Transform) -> dict[str, Any]:
    """Return the facts of the model card on flipped training images, and the setting behind them.

    Args:
        config: Resolved config, ``probe.hflip`` too.
        transform: Transform of the training images.
    """
    is_probe_flipped = config.probe.enabled == "on" and config.probe.hflip == "on"
    if config.is_probe_only or (is_probe_flipped and not transform.has_flip):
        return {"flipped": is_probe_flipped, "flipped_by": f"probe.hflip={config.probe.hflip}"}
    augment = config.augment
    setting = "augment.hflip=off" if augment.hflip == "off" else f"augment.name={augment.name}"
    return {"flipped": transform.has_flip, "flipped_by": setting}


def _compute_image_weights(
    balance: ClassBalance, images: LabeledImages, *, last_epoch: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weight of each image in the loss of the last epoch, shape (N,)."""
    weights = compute_expected_draws(balance.sampling_schedule(last_epoch), len(images))
    if balance.class_weights is not None and images.multi_hot is None:
        weights = weights * balance.class_weights.factors.numpy()[images.labels]
    return weights


def _find_activation_layout(network: Network, depth: int, *, backbone: str) -> ActivationLayout:
    """Return the layout of the last stage's inputs, after checking that the split is exact."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *network.spec.input_size, generator=generator)
    with eval_mode(network.module), torch.inference_mode():
        split = split_last_groups(network.module, depth)
        activations = None if split is None else split.trunk(images)
        if (
            split is not None
            and isinstance(activations, torch.Tensor)
            and len(activations) == len(images)
        ):
            logits, expected = split.last_stage(activations), network.module(images)
            if torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return ActivationLayout.from_activations(activations)
    raise ConfigError(
        f"probe.depth={depth} cannot apply to model.backbone={backbone}: its graph cannot be split "
        f"before the last {depth} layer groups. Leave it out."
    )
