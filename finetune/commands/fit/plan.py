"""What is about to happen, as JSON values that a console shows and a test reads."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    class_weights_start,
    fitted_loss,
    num_processes,
    rare_classes,
)
from finetune.config.auto import value_at
from finetune.types import Phase, Split

_OF_EPOCHS = ("trainer.epochs", "data.train_sizes", "model.batch_norm")
"""What a run that is a probe alone does not use."""

_OF_STEPS = ("trainer.batch_size", "optim.lr", "optim.backbone_lr_scale", "optim.layer_decay")
"""What it does not use if its head is all that trains."""


def describe(
    training: Training, *, changed: Mapping[str, Any], num_rejected: int, run_dir: Path
) -> dict[str, Any]:
    """Return the plan of a run.

    Args:
        training: What was built.
        changed: Dotted key to value of what was asked for.
        num_rejected: Files that were left out.
        run_dir: Where the run will lie.
    """
    config, manifest, network = training.config, training.manifest, training.network
    counts = manifest.class_counts(Split.TRAIN)
    classifier = training.module.classifier
    return {
        "run_dir": str(run_dir),
        "data": {
            "path": str(manifest.root),
            "classes": list(manifest.classes),
            "images": {split.value: len(manifest.of(split)) for split in Split},
            "class_counts": {
                split.value: dict(zip(manifest.classes, manifest.class_counts(split), strict=True))
                for split in Split
                if manifest.of(split)
            },
            "imbalance_ratio": round(max(counts) / max(1, min(counts)), 2),
            "rejected": num_rejected,
        },
        "model": {
            "backbone": config.model.backbone,
            "weights": network.report.source,
            "loaded_share": round(network.report.share, 4),
            "parameters": sum(group.num_parameters for group in classifier.groups),
            "layer_groups": [group.name for group in classifier.groups],
            "image_size": network.spec.input_size[-1],
        },
        "recipe": [
            {"key": key, "value": value_at(config, key), "reason": reason}
            for key, reason in training.reasons.items()
            if key not in _unused(training)
        ],
        "cache": _cache(training),
        "probe": _probe(training),
        "phases": [_phase(training, phase) for phase in training.phases],
        "training": {
            "epochs": config.trainer.epochs,
            "batch_size": training.batch_size,
            "images_per_epoch": training.images_per_epoch,
            "steps_per_epoch": training.steps_per_epoch,
            "optimizer": config.optim.name,
            "lr_schedule": config.lr_schedule.name,
            "label_smoothing": config.loss.label_smoothing,
            "loss": config.loss.name,
            **_imbalance(training),
            "augment": config.augment.name,
            "augment_rare": config.augment.rare,
            "rare_classes": list(rare_classes(config, manifest)),
            "precision": config.trainer.precision,
            "accelerator": config.trainer.accelerator,
            "processes": num_processes(config),
            "accumulate": config.trainer.accumulate,
            "monitor": config.trainer.monitor,
            "seed": config.seed,
            "wandb": config.tracking.wandb,
        },
        "changed": dict(changed),
    }


def _imbalance(training: Training) -> dict[str, Any]:
    chosen = training.config.imbalance
    start = class_weights_start(training.config)
    return {
        "imbalance": chosen.strategy,
        "sampler": chosen.sampler,
        "class_weights": chosen.class_weights,
        "class_weights_from_epoch": None if start is None else start + 1,
        "head_step": chosen.head,
    }


def _unused(training: Training) -> tuple[str, ...]:
    if not training.is_probe_only or training.probe is None:
        return ()
    return _OF_EPOCHS + (_OF_STEPS if training.probe.tail is None else ())


def _probe(training: Training) -> dict[str, Any] | None:
    probe = training.probe
    if probe is None:
        return None
    said = {
        "only": training.is_probe_only,
        **asdict(probe.views),
        "loss": fitted_loss(training.config),
        "tail": None,
    }
    if probe.tail is not None:
        groups = training.module.classifier.groups[: probe.tail.depth]
        said["tail"] = {
            "groups": [group.name for group in groups],
            "lr": dict(zip((group.name for group in groups), training.rates, strict=False)),
            "passes": probe.tail.training.passes,
            "gigabytes": round(probe.tail.num_bytes / 1e9, 6),
        }
    return said


def _cache(training: Training) -> dict[str, Any]:
    cache = training.cache
    if cache is None:
        return {"folder": None, "why_not": training.no_cache}
    return {
        "folder": str(cache.root),
        "shorter_side_px": cache.shorter_side,
        "gigabytes": round(cache.num_bytes / 1e9, 6),
        "new_gigabytes": round(cache.new_bytes / 1e9, 6),
    }


def _phase(training: Training, phase: Phase) -> dict[str, Any]:
    groups = training.module.classifier.groups[: phase.depth]
    rates = training.rates[: phase.depth]
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
