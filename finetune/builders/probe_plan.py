"""Whether a run begins with a probe, and how that is made."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.builders.criterion import class_weights, fitted_loss, fitted_offset
from finetune.builders.image_sizes import training_sizes
from finetune.builders.last_stage_plan import check_tail, plan_tail
from finetune.builders.model_prior import answers_shift
from finetune.builders.resolve import decimal, images_at_once, is_probe_only, number
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.cache.eviction import stores_root
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingAt, expected_draws
from finetune.data.transforms.eval_transform import Transform
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.models.head import linear_head
from finetune.probe.extraction import FeaturePlan
from finetune.probe.feature_store import Views
from finetune.probe.last_stage import MakeOptimizer
from finetune.probe.linear_probe import ProbeImages, ProbePlan
from finetune.types import Split

MIRRORED_BELOW = 1_000
"""Training images below which a probe sees mirror images even if fine-tuning follows.

They cost as much as the images themselves, and the more images there are the less they add.
"""


def with_older_defaults(config: Config) -> Config:
    """Return the config of a run that goes on, without what never applied to a probe alone.

    Older releases wrote smoothed labels, their default, into the configs of such runs, too.

    Args:
        config: Resolved.
    """
    return replaced(config, {"loss.label_smoothing": 0.0}) if is_probe_only(config) else config


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
            ("views", config.probe.views != 0),
            ("depth", config.probe.depth > 1),
            ("passes", config.probe.passes != 0),
        ):
            if idle:
                raise ConfigError(
                    f"probe.{key}={getattr(config.probe, key)} cannot apply to probe.enabled=off. "
                    f"Leave one of them out."
                )
        if config.imbalance.head in ("crt", "tau_norm"):
            raise ConfigError(
                f"imbalance.head={config.imbalance.head} cannot apply to probe.enabled=off: it "
                f"asks the trained network about all images as a probe does. Take "
                f"imbalance.strategy=post_hoc, which needs no images."
            )
        return
    check_tail(config)
    if linear_head(network.module) is None:
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
        (f"loss.name={config.loss.name}", config.loss.name != fitted_loss(config)),
        ("loss.label_smoothing", bool(decimal(config.loss.label_smoothing))),
        ("augment.rare", config.augment.rare != "off"),
        ("augment.mixup", bool(config.augment.mixup)),
        ("augment.cutmix", bool(config.augment.cutmix)),
        ("optim.average_last", bool(decimal(config.optim.average_last))),
        ("data.train_sizes", bool(training_sizes(config, network))),
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
    sampling: SamplingAt,
    make_optimizer: MakeOptimizer,
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
    mirrored = config.probe.mirrored == "on"
    if config.probe.mirrored == "auto":
        few = len(manifest.of(Split.TRAIN)) < MIRRORED_BELOW
        mirrored = transform.flips and (few or is_probe_only(config))
        config = replaced(config, {"probe.mirrored": "on" if mirrored else "off"})
    if config.probe.enabled == "off":
        return config, None
    train, counts = _images(manifest, Split.TRAIN), manifest.class_counts(Split.TRAIN)
    last = sampling(number(config.trainer.epochs) - 1)
    weights = expected_draws(last, len(train.labels))
    by_class = class_weights(config, counts)
    if by_class is not None:
        weights = weights * by_class.numpy()[train.labels]
    train = replace(train, weights=weights)
    val = _images(manifest, Split.VAL)
    views = Views(mirrored=mirrored, parts=number(config.probe.views))
    tail = plan_tail(
        config,
        network,
        make_optimizer,
        num_images=len(train.paths),
        num_kept=len(train.paths) * len(views.names) + len(val.paths),
        batch_size=batch_size,
        at_once=images_at_once(config, batch_size),
    )
    return config, ProbePlan(
        train=train,
        val=val,
        classes=manifest.classes,
        views=views,
        features=FeaturePlan(
            network=json.dumps(network.model_args, sort_keys=True),
            spec=network.spec,
            precision=config.trainer.precision,
            root=stores_root(config.data.cache),
            owner=str(manifest.root),
            limit_bytes=round(config.cache.max_gb * 1e9),
            num_workers=number(config.data.num_workers),
            max_pixels=int(config.data.max_megapixels * 1e6),
        ),
        offset=fitted_offset(config, counts),
        shift=answers_shift(config, manifest, sampling),
        tail=tail,
    )


def mirror_facts(config: Config, transform: Transform) -> dict[str, Any]:
    """Return what the card says of mirrored images: whether training showed any, and what decided.

    Args:
        config: Resolved, ``probe`` too.
        transform: Of training images.
    """
    by_probe = config.probe.enabled == "on" and config.probe.mirrored == "on"
    if is_probe_only(config) or (by_probe and not transform.flips):
        by = f"probe.mirrored={config.probe.mirrored}"
        return {"mirrored": by_probe, "mirrored_by": by}
    return {"mirrored": transform.flips, "mirrored_by": f"augment.name={config.augment.name}"}


def _images(manifest: Manifest, split: Split) -> ProbeImages:
    samples = manifest.of(split)
    labels = np.asarray(manifest.labels(samples), np.int64)
    return ProbeImages(manifest.paths(samples), labels, np.ones(len(labels)))
