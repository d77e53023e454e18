"""Whether a run begins with a probe, and how that is made."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.builders.criterion import (
    compute_class_weights,
    compute_probe_logit_offset,
    select_probe_loss,
)
from finetune.builders.image_sizes import compute_train_image_sizes
from finetune.builders.last_stage_plan import check_last_stage, plan_last_stage
from finetune.builders.model_prior import compute_run_logit_shift
from finetune.builders.resolve import (
    compute_micro_batch_size,
    is_probe_only,
    require_float,
    require_int,
)
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingSchedule, compute_expected_draws
from finetune.data.transforms.eval_transform import Transform
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.models.head import find_linear_head
from finetune.probe.extraction import ExtractionPlan
from finetune.probe.feature_store import ViewSpec
from finetune.probe.last_stage import OptimizerFactory
from finetune.probe.linear_probe import ProbeImages, ProbePlan
from finetune.types import Split

FLIP_IMAGE_LIMIT = 1_000
"""Training images below which a probe sees mirror images even if fine-tuning follows.

They cost as much as the images themselves, and the more images there are the less they add.
"""


def migrate_legacy_config(config: Config) -> Config:
    """Return the config of a run that goes on, without what never applied to a probe alone.

    Older releases wrote smoothed labels, their default, into the configs of such runs, too.

    Args:
        config: Resolved.
    """
    return (
        replace_values(config, {"loss.label_smoothing": 0.0}) if is_probe_only(config) else config
    )


def check_probe(config: Config, network: Network) -> None:
    """Refuse what cannot be done by a probe.

    Args:
        config: Resolved.
        network: The backbone.

    Raises:
        ConfigError: Names both settings.
    """
    if config.probe.enabled == "off":
        for key, idle in (
            ("num_crops", config.probe.num_crops != 0),
            ("depth", config.probe.depth > 1),
            ("last_stage_epochs", config.probe.last_stage_epochs != 0),
        ):
            if idle:
                raise ConfigError(
                    f"probe.{key}={getattr(config.probe, key)} cannot apply to probe.enabled=off. "
                    f"Leave one of them out."
                )
        if config.imbalance.head_rebalancing in ("crt", "tau_norm"):
            raise ConfigError(
                f"imbalance.head_rebalancing={config.imbalance.head_rebalancing} cannot apply to probe.enabled=off: it "
                f"asks the trained network about all images as a probe does. Take "
                f"imbalance.strategy=post_hoc, which needs no images."
            )
        return
    check_last_stage(config)
    if find_linear_head(network.module) is None:
        raise ConfigError(
            f"probe.enabled=on cannot apply to {config.model.backbone}, whose classifier is not "
            f"one linear layer. Leave it out."
        )
    if config.trainer.strategy != "ddp":
        raise ConfigError(
            f"probe.enabled=on cannot apply to trainer.strategy={config.trainer.strategy}: no "
            f"process holds the whole network. Set probe.enabled=off."
        )
    if not is_probe_only(config):
        return
    for key, idle in (
        ("trainer.epochs", config.trainer.epochs != 1),
        (f"loss.name={config.loss.name}", config.loss.name != select_probe_loss(config)),
        ("loss.label_smoothing", bool(require_float(config.loss.label_smoothing))),
        ("augment.rare_class_preset", config.augment.rare_class_preset != "off"),
        ("augment.mixup", bool(config.augment.mixup)),
        ("augment.cutmix", bool(config.augment.cutmix)),
        ("optim.swa_fraction", bool(require_float(config.optim.swa_fraction))),
        ("data.train_image_size", bool(compute_train_image_sizes(config, network))),
    ):
        if idle:
            raise ConfigError(
                f"{key} cannot apply to unfreeze.name=linear_probe: the head is fitted by logistic "
                f"regression until nothing improves. Leave it out, or set probe.enabled=off to "
                f"train the head in epochs."
            )


def plan_probe(
    config: Config,
    manifest: Manifest,
    network: Network,
    transform: Transform,
    *,
    sampling: SamplingSchedule,
    make_optimizer: OptimizerFactory,
    batch_size: int,
) -> tuple[Config, ProbePlan | None]:
    """Return the config with ``probe`` decided, and how the probe is made; None without one.

    Classes of unequal size are treated as in the last epoch: an image weighs as often as it is then
    drawn in the mean, times its class's weight in the loss, and adjusted logits are adjusted here,
    too. Focal and margin losses are not fitted, nor the user's own: in their place stands plain
    cross-entropy with these weights.

    Args:
        config: Resolved but for this.
        manifest: The images.
        network: The backbone.
        transform: Of training images.
        sampling: Of training images, by the epoch.
        make_optimizer: Of the run.
        batch_size: Images of a step.

    Raises:
        ConfigError: The probe cannot go as deep as was asked.
    """
    mirrored = config.probe.hflip == "on"
    if config.probe.hflip == "auto":
        few = len(manifest.get_samples(Split.TRAIN)) < FLIP_IMAGE_LIMIT
        mirrored = transform.has_flip and (few or is_probe_only(config))
        config = replace_values(config, {"probe.hflip": "on" if mirrored else "off"})
    if config.probe.enabled == "off":
        return config, None
    train, counts = (
        _build_probe_images(manifest, Split.TRAIN),
        manifest.count_per_class(Split.TRAIN),
    )
    last = sampling(require_int(config.trainer.epochs) - 1)
    weights = compute_expected_draws(last, len(train.labels))
    by_class = compute_class_weights(config, counts)
    if by_class is not None:
        weights = weights * by_class.numpy()[train.labels]
    train = replace(train, weights=weights)
    val = _build_probe_images(manifest, Split.VAL)
    views = ViewSpec(flipped=mirrored, num_crops=require_int(config.probe.num_crops))
    tail = plan_last_stage(
        config,
        network,
        make_optimizer,
        num_images=len(train.paths),
        num_cached=len(train.paths) * len(views.names) + len(val.paths),
        batch_size=batch_size,
        micro_batch_size=compute_micro_batch_size(config, batch_size),
    )
    return config, ProbePlan(
        train=train,
        val=val,
        classes=manifest.classes,
        views=views,
        extraction=ExtractionPlan(
            model_args_json=json.dumps(network.model_args, sort_keys=True),
            spec=network.spec,
            precision=config.trainer.precision,
            root=resolve_cache_root(config.data.cache),
            owner=str(manifest.root),
            limit_bytes=round(config.cache.max_gb * 1e9),
            num_workers=require_int(config.data.num_workers),
            max_pixels=int(config.data.max_megapixels * 1e6),
        ),
        logit_offset=compute_probe_logit_offset(config, counts),
        eval_logit_shift=compute_run_logit_shift(config, manifest, sampling),
        last_stage=tail,
    )


def describe_flips(config: Config, transform: Transform) -> dict[str, Any]:
    """Return what the card says of mirrored images: whether training showed any, and what decided.

    Args:
        config: Resolved, ``probe`` too.
        transform: Of training images.
    """
    by_probe = config.probe.enabled == "on" and config.probe.hflip == "on"
    if is_probe_only(config) or (by_probe and not transform.has_flip):
        by = f"probe.hflip={config.probe.hflip}"
        return {"mirrored": by_probe, "mirrored_by": by}
    return {"mirrored": transform.has_flip, "mirrored_by": f"augment.name={config.augment.name}"}


def _build_probe_images(manifest: Manifest, split: Split) -> ProbeImages:
    samples = manifest.get_samples(split)
    labels = np.asarray(manifest.encode_labels(samples), np.int64)
    return ProbeImages(manifest.resolve_paths(samples), labels, np.ones(len(labels)))
