"""What is about to happen, as JSON values that a console shows and a test reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    compute_class_weights_start_epoch,
    compute_world_size,
    find_rare_classes,
    select_probe_loss,
)
from finetune.config.auto import get_config_value
from finetune.types import Phase, Split

_EPOCH_KEYS = ("trainer.epochs", "data.train_image_size", "model.batch_norm")
"""What a run that is a probe alone does not use."""

_STEP_KEYS = ("trainer.batch_size", "optim.lr", "optim.backbone_lr_scale", "optim.layer_decay")
"""What it does not use if its head is all that trains."""


def build_plan(
    training: Training, *, overrides: Mapping[str, Any], num_rejected: int, run_dir: Path
) -> dict[str, Any]:
    """Return the plan of a run.

    Args:
        training: What was built.
        overrides: Dotted key to value of what was asked for.
        num_rejected: Files that were left out.
        run_dir: Where the run will lie.
    """
    config, manifest, network = training.config, training.manifest, training.network
    counts = manifest.count_per_class(Split.TRAIN)
    classifier = training.module.classifier
    return {
        "run_dir": str(run_dir),
        "data": {
            "path": str(manifest.root),
            "classes": list(manifest.classes),
            "images": {split.value: len(manifest.get_samples(split)) for split in Split},
            "class_counts": {
                split.value: dict(
                    zip(manifest.classes, manifest.count_per_class(split), strict=True)
                )
                for split in Split
                if manifest.get_samples(split)
            },
            "imbalance_ratio": round(max(counts) / max(1, min(counts)), 2),
            "rejected": num_rejected,
        },
        "model": {
            "backbone": config.model.backbone,
            "weights": network.report.source,
            "loaded_fraction": round(network.report.loaded_fraction, 4),
            "parameters": sum(group.num_parameters for group in classifier.groups),
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
            "rare_class_preset": config.augment.rare_class_preset,
            "rare_classes": list(find_rare_classes(config, manifest)),
            "precision": config.trainer.precision,
            "accelerator": config.trainer.accelerator,
            "processes": compute_world_size(config),
            "accumulate": config.trainer.accumulate_grad_batches,
            "monitor": config.trainer.monitor,
            "seed": config.seed,
            "wandb": config.tracking.wandb,
        },
        "changed": dict(overrides),
    }


def _describe_imbalance(training: Training) -> dict[str, Any]:
    chosen = training.config.imbalance
    start = compute_class_weights_start_epoch(training.config)
    return {
        "imbalance": chosen.strategy,
        "sampler": chosen.sampler,
        "class_weights": chosen.class_weights,
        "class_weights_start_epoch": None if start is None else start + 1,
        "head_rebalancing": chosen.head_rebalancing,
    }


def _find_unused_keys(training: Training) -> tuple[str, ...]:
    if not training.is_probe_only or training.probe is None:
        return ()
    return _EPOCH_KEYS + (_STEP_KEYS if training.probe.last_stage is None else ())


def _describe_probe(training: Training) -> dict[str, Any] | None:
    probe = training.probe
    if probe is None:
        return None
    said = {
        "probe_only": training.is_probe_only,
        "flipped": probe.views.flipped,
        "num_crops": probe.views.num_crops,
        "loss": select_probe_loss(training.config),
        "last_stage": None,
    }
    if probe.last_stage is not None:
        groups = training.module.classifier.groups[: probe.last_stage.depth]
        said["last_stage"] = {
            "groups": [group.name for group in groups],
            "lr": dict(
                zip((group.name for group in groups), training.peak_learning_rates, strict=False)
            ),
            "epochs": probe.last_stage.settings.num_passes,
            "activations_gb": round(probe.last_stage.num_bytes / 1e9, 6),
        }
    return said


def _describe_cache(training: Training) -> dict[str, Any]:
    cache = training.cache
    if cache is None:
        return {"folder": None, "disabled_reason": training.no_cache_reason}
    return {
        "folder": str(cache.root),
        "shorter_side_px": cache.shorter_side,
        "total_gb": round(cache.num_bytes / 1e9, 6),
        "new_gb": round(cache.new_bytes / 1e9, 6),
    }


def _describe_phase(training: Training, phase: Phase) -> dict[str, Any]:
    groups = training.module.classifier.groups[: phase.depth]
    rates = training.peak_learning_rates[: phase.depth]
    frozen = training.config.model.batch_norm == "frozen"
    return {
        "first_epoch": phase.first_epoch + 1,
        "last_epoch": phase.last_epoch + 1,
        "depth": phase.depth,
        "groups": [group.name for group in groups],
        "parameters": sum(group.num_parameters for group in groups),
        "lr": {group.name: rate for group, rate in zip(groups, rates, strict=True)},
        "batch_norm": "frozen" if frozen or phase.depth == 1 else training.config.model.batch_norm,
    }
