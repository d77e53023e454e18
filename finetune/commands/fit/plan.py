"""Plan of a run as JSON values, which the console shows and ``--json`` prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.audit.audit import Audit
from finetune.builders import Training, select_probe_loss
from finetune.builders.constraints.probe_rules import EPOCH_SETTINGS
from finetune.config.auto import get_config_value
from finetune.config.sections.augment import GEOMETRY_KEYS
from finetune.data.layouts.name_groups import summarise_groups
from finetune.evaluation.grouped_folds import count_groups
from finetune.probe.cross_validation import NUM_FOLDS, count_held_out_folds
from finetune.types import Phase, Split

_EPOCH_KEYS = ("trainer.epochs", "data.train_image_size", "model.batch_norm")
"""Keys without effect in a run that is a linear probe only."""

_STEP_KEYS = ("trainer.batch_size",)
"""Further keys without effect if the probe trains only the head, beside ``EPOCH_SETTINGS``."""


def build_plan(
    training: Training,
    *,
    overrides: Mapping[str, Any],
    num_rejected: int,
    run_dir: Path,
    audit: Audit | None = None,
) -> dict[str, Any]:
    """Return the plan of a run.

    Args:
        training: Objects of the run.
        overrides: Dotted keys to values that the user set.
        num_rejected: Number of rejected image files.
        run_dir: Run folder.
        audit: Audit of all images; None in a run that is resumed.
    """
    config, network = training.config, training.network
    classifier = training.module.classifier
    return {
        "run_dir": str(run_dir),
        "data": {
            **_describe_data(training, num_rejected=num_rejected),
            "pixel_range": config.data.pixel_range,
            "sixteen_bit_files": None
            if audit is None or audit.bits is None
            else audit.bits.to_json(),
            "layout": [] if audit is None else list(audit.layout),
            "similar_classes": []
            if audit is None
            else [classes.to_json() for classes in audit.similar_classes],
        },
        "model": {
            "backbone": config.model.backbone,
            "head": config.model.head,
            "weights": network.report.source,
            "loaded_fraction": round(network.report.loaded_fraction, 4),
            "num_parameters": sum(group.num_parameters for group in classifier.groups),
            "layer_groups": [group.name for group in classifier.groups],
            "image_size": network.spec.input_size[-1],
        },
        "recipe": [
            {"key": key, "value": get_config_value(config, key), "reason": reason}
            for key, reason in training.reasons.items()
            if key not in _find_unused_keys(training)
        ],
        "cache": _describe_cache(training),
        "probe": _describe_probe(training),
        "phases": [_describe_phase(training, phase) for phase in training.phases],
        "training": {
            "epochs": config.trainer.epochs,
            "batch_size": training.batch_size,
            "images_per_epoch": training.images_per_epoch,
            "steps_per_epoch": training.steps_per_epoch,
            "optimizer": config.optim.name,
            "lr_schedule": config.lr_schedule.name,
            "label_smoothing": config.loss.label_smoothing,
            "loss": config.loss.name,
            **_describe_imbalance(training),
            "augment": config.augment.name,
            **{key: getattr(config.augment, key) for key in GEOMETRY_KEYS},
            "rare_class_preset": config.augment.rare_class_preset,
            "rare_classes": list(training.rare_classes),
            "precision": config.trainer.precision,
            "accelerator": config.trainer.accelerator,
            "world_size": config.world_size,
            "accumulate_grad_batches": config.trainer.accumulate_grad_batches,
            "monitor": config.trainer.monitor,
            "checkpoint_monitor": config.checkpoint.monitor,
            "seed": config.seed,
            "wandb": config.tracking.wandb,
        },
        "overrides": dict(overrides),
    }


def _describe_data(training: Training, *, num_rejected: int) -> dict[str, Any]:
    manifest, counts = training.manifest, training.data.class_counts
    groups = summarise_groups(manifest.samples, training.config.data.group_by)
    return {
        "path": str(manifest.root),
        "classes": list(manifest.classes),
        "num_images": {split.value: len(manifest.get_samples(split)) for split in Split},
        "class_counts": {
            split.value: dict(zip(manifest.classes, manifest.count_per_class(split), strict=True))
            for split in Split
            if manifest.get_samples(split)
        },
        **(
            {"labels_per_image": round(sum(counts) / len(training.data.train), 3)}
            if training.data.is_multi_label
            else {}
        ),
        "imbalance_ratio": round(max(counts) / max(1, min(counts)), 2),
        "num_rejected": num_rejected,
        "groups": None if groups is None else groups.to_json(),
    }


def _describe_imbalance(training: Training) -> dict[str, Any]:
    imbalance, start_epoch = training.config.imbalance, training.class_weights_start_epoch
    is_post_hoc = imbalance.head_rebalancing == "post_hoc"
    return {
        "imbalance": imbalance.strategy,
        "sampler": imbalance.sampler,
        "class_weights": imbalance.class_weights,
        "class_weights_start_epoch": None if start_epoch is None else start_epoch + 1,
        "head_rebalancing": imbalance.head_rebalancing,
        "post_hoc_strength": imbalance.post_hoc_strength if is_post_hoc else None,
    }


def _find_unused_keys(training: Training) -> tuple[str, ...]:
    if not training.is_probe_only or training.probe is None:
        return () if training.facts.has_batch_norm else ("model.batch_norm",)
    if training.probe.last_stage is not None:
        return _EPOCH_KEYS
    return (*_EPOCH_KEYS, *_STEP_KEYS, *EPOCH_SETTINGS)


def _describe_probe(training: Training) -> dict[str, Any] | None:
    probe = training.probe
    if probe is None:
        return None
    description: dict[str, Any] = {
        "probe_only": training.is_probe_only,
        "flipped": None if training.config.probe.hflip == "auto" else probe.views.flipped,
        "num_crops": probe.views.num_crops,
        "loss": select_probe_loss(training.config.loss.name),
        "folds": {
            "num_folds": NUM_FOLDS,
            "num_held_out_folds": count_held_out_folds(len(training.data.train)),
            "num_groups": count_groups(training.data.train.groups),
        },
        "last_stage": None,
    }
    if probe.last_stage is not None:
        groups = training.module.classifier.groups[: probe.last_stage.depth]
        description["last_stage"] = {
            "groups": [group.name for group in groups],
            "lr": dict(
                zip((group.name for group in groups), training.peak_learning_rates, strict=False)
            ),
            "epochs": probe.last_stage.settings.num_epochs,
            "activations_gb": round(probe.last_stage.num_bytes / 1e9, 9),
        }
    return description


def _describe_cache(training: Training) -> dict[str, Any]:
    cache = training.cache
    if cache is None or not cache.fits_on_disk:
        return {"folder": None, "disabled_reason": training.no_cache_reason}
    return {
        "folder": str(cache.root),
        "shorter_side_px": cache.shorter_side,
        "total_gb": round(cache.num_bytes / 1e9, 9),
        "new_gb": round(cache.new_bytes / 1e9, 9),
    }


def _describe_phase(training: Training, phase: Phase) -> dict[str, Any]:
    groups = training.module.classifier.groups[: phase.depth]
    rates = training.peak_learning_rates[: phase.depth]
    return {
        "first_epoch": phase.first_epoch + 1,
        "last_epoch": phase.last_epoch + 1,
        "depth": phase.depth,
        "groups": [group.name for group in groups],
        "num_parameters": sum(group.num_parameters for group in groups),
        "lr": None
        if training.config.optim.lr == "auto"
        else {group.name: rate for group, rate in zip(groups, rates, strict=True)},
        "batch_norm": _describe_batch_norm(training, phase),
    }


def _describe_batch_norm(training: Training, phase: Phase) -> str:
    """Return what BatchNorm does in a phase; "none" in a network without such layers."""
    if not training.facts.has_batch_norm:
        return "none"
    return "frozen" if phase.depth == 1 else training.config.model.batch_norm
