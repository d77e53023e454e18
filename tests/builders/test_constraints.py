"""Contract of the constraint table: a run violates each row, and the error names its keys."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.builders.constraints import CONSTRAINTS, Constraint, check_constraints
from finetune.builders.network import build_network
from finetune.builders.resolve import RunSpec, resolve_config
from finetune.config.load import replace_values
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError, DataError, FinetuneError
from finetune.types import Phase
from tests.support.runs import build_listed_manifest, create_small_config

NO_LINEAR_HEAD = {"has_linear_head": False}
PROBE = {"probe.enabled": "on"}
PROBE_ONLY = {
    **PROBE,
    "unfreeze.name": "linear_probe",
    "trainer.epochs": 1,
    "loss.label_smoothing": 0.0,
}
LAST_STAGE = {**PROBE, "probe.depth": 2, "probe.last_stage_epochs": 1}
SHARDED = {"trainer.strategy": "fsdp", "trainer.accelerator": "cuda", "trainer.devices": 2}
SINGLE_IMAGES = {"trainer.devices": 2, "trainer.accumulate_grad_batches": 4}

CASES: dict[tuple[str, ...], dict[str, Any]] = {
    ("model.batch_norm", "trainer.accelerator"): {"model.batch_norm": "sync"},
    ("trainer.precision", "trainer.accelerator"): {"trainer.precision": "16-mixed"},
    ("trainer.devices", "trainer.accelerator"): {
        "trainer.accelerator": "cuda",
        "trainer.devices": 3,
    },
    ("optim.swa_fraction", "model.batch_norm", "trainer.devices"): {
        "optim.swa_fraction": 0.5,
        "trainer.devices": 2,
        "model.batch_norm": "train",
    },
    ("optim.swa_fraction", "trainer.epochs"): {"optim.swa_fraction": 0.1, "trainer.epochs": 1},
    ("probe.num_crops", "probe.enabled"): {"probe.num_crops": 1},
    ("probe.depth", "probe.enabled"): {"probe.depth": 2},
    ("probe.last_stage_epochs", "probe.enabled"): {"probe.last_stage_epochs": 3},
    ("probe.stages", "probe.enabled"): {"probe.stages": "on"},
    ("imbalance.head_rebalancing", "probe.enabled"): {"imbalance.head_rebalancing": "crt"},
    ("probe.last_stage_epochs", "probe.depth"): {**PROBE, "probe.last_stage_epochs": 3},
    ("probe.enabled", "model.head"): {**PROBE, "model.head": "mlp"},
    ("model.head_init", "probe.enabled"): {**PROBE, "model.head_init": "he"},
    ("probe.enabled", "model.backbone"): {**PROBE, "facts": NO_LINEAR_HEAD},
    ("probe.enabled", "trainer.strategy"): {**PROBE, **SHARDED},
    ("probe.depth", "model.backbone"): {
        **PROBE,
        "probe.depth": 6,
        "probe.last_stage_epochs": 1,
    },
    ("trainer.epochs", "unfreeze.name"): {**PROBE_ONLY, "trainer.epochs": 2},
    ("loss.name", "unfreeze.name"): {**PROBE_ONLY, "loss.name": "focal"},
    ("loss.label_smoothing", "unfreeze.name"): {**PROBE_ONLY, "loss.label_smoothing": 0.1},
    ("augment.rare_class_preset", "unfreeze.name"): {
        **PROBE_ONLY,
        "augment.rare_class_preset": "strong",
    },
    ("augment.mixup", "unfreeze.name"): {**PROBE_ONLY, "augment.mixup": 0.2},
    ("augment.cutmix", "unfreeze.name"): {**PROBE_ONLY, "augment.cutmix": 1.0},
    ("optim.swa_fraction", "unfreeze.name"): {**PROBE_ONLY, "optim.swa_fraction": 0.9},
    ("optim.head_l1", "unfreeze.name"): {**PROBE_ONLY, "optim.head_l1": 0.1},
    ("optim.max_norm", "unfreeze.name"): {**PROBE_ONLY, "optim.max_norm": {"head": 3.0}},
    ("data.train_image_size", "unfreeze.name"): {
        **PROBE_ONLY,
        "data.train_image_size": (24, 32),
    },
    (
        "trainer.batch_size",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.accumulate_grad_batches",
    ): {"trainer.batch_size": 9, "trainer.devices": 2},
    ("trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"): {
        "trainer.batch_size": 32,
        "trainer.devices": 32,
        "model.batch_norm": "frozen",
    },
    ("augment.mixup", "trainer.batch_size"): {**SINGLE_IMAGES, "augment.mixup": 0.2},
    ("augment.cutmix", "trainer.batch_size"): {**SINGLE_IMAGES, "augment.cutmix": 1.0},
    ("model.batch_norm", "trainer.batch_size"): {**SINGLE_IMAGES, "model.batch_norm": "train"},
    ("model.grad_checkpointing", "model.batch_norm"): {
        "model.grad_checkpointing": True,
        "model.batch_norm": "train",
    },
    ("trainer.strategy", "trainer.accelerator"): {"trainer.strategy": "fsdp"},
    ("trainer.strategy", "unfreeze.name"): {
        **SHARDED,
        "phases": (Phase(0, 0, 1), Phase(1, 1, 6)),
    },
    ("trainer.strategy",): {**SHARDED, "trainer.strategy": "deepspeed"},
    ("trainer.strategy", "trainer.devices"): {**SHARDED, "trainer.devices": 1},
    ("trainer.strategy", "optim.swa_fraction"): {
        **SHARDED,
        "model.batch_norm": "frozen",
        "optim.swa_fraction": 0.5,
    },
    ("trainer.strategy", "trainer.compile"): {**SHARDED, "trainer.compile": True},
    ("lr_schedule.warmup_fraction", "lr_schedule.name"): {"lr_schedule.name": "one_cycle"},
    ("optim.momentum", "lr_schedule.name"): {
        "lr_schedule.name": "one_cycle",
        "lr_schedule.warmup_fraction": 0.0,
        "optim.name": "sgd",
        "optim.momentum": 0.5,
    },
    ("optim.params", "lr_schedule.name"): {
        "lr_schedule.name": "one_cycle",
        "lr_schedule.warmup_fraction": 0.0,
        "optim.params": {"betas": [0.8, 0.9]},
    },
    ("optim.params", "optim.nesterov"): {
        "optim.name": "sgd",
        "optim.momentum": 0.9,
        "optim.nesterov": "on",
        "optim.params": {"dampening": 0.5},
    },
    ("optim.params", "optim.momentum"): {
        "optim.name": "sgd",
        "optim.momentum": 0,
        "optim.params": {"dampening": 0.5},
    },
    ("trainer.early_stopping_patience", "lr_schedule.name"): {
        "lr_schedule.name": "plateau",
        "lr_schedule.params": {"patience": 4},
        "trainer.early_stopping_patience": 5,
    },
    ("lr_schedule.name", "probe.depth"): {**LAST_STAGE, "lr_schedule.name": "plateau"},
    ("optim.head_l1", "probe.depth"): {**LAST_STAGE, "optim.head_l1": 0.1},
    ("imbalance.head_rebalancing", "loss.name"): {
        "imbalance.head_rebalancing": "post_hoc",
        "loss.name": "hinge",
    },
    ("imbalance.head_rebalancing", "optim.max_norm"): {
        "imbalance.head_rebalancing": "tau_norm",
        "optim.max_norm": {"all": 3.0},
        "probe.enabled": "on",
    },
    ("trainer.strategy", "optim.head_l1"): {
        **SHARDED,
        "model.batch_norm": "frozen",
        "optim.head_l1": 0.1,
    },
    ("trainer.strategy", "optim.max_norm"): {
        **SHARDED,
        "model.batch_norm": "frozen",
        "optim.max_norm": {"all": 3.0},
    },
    ("augment.rare_class_preset", "augment.name"): {
        "augment.name": "strong",
        "augment.rare_class_preset": "medium",
        "rare_classes": ("cow",),
    },
    ("augment.rare_class_preset", "augment.rare_class_fraction"): {
        "augment.name": "light",
        "augment.rare_class_preset": "medium",
    },
    (
        "imbalance.head_rebalancing",
        "imbalance.sampler",
        "imbalance.class_weights",
        "loss.name",
    ): {"imbalance.head_rebalancing": "post_hoc", "untrained_classes": ("bee",)},
    ("data.cache_shorter_side", "data.cache"): {
        "data.cache": "off",
        "data.cache_shorter_side": 64,
    },
}
"""Keys of a constraint to settings, and to attributes of the run, that violate it."""


@pytest.fixture(scope="module")
def default_run() -> RunSpec:
    """Return a run of 24 training images, two epochs and no linear probe."""
    data = TrainingData.from_manifest(build_listed_manifest({"ant": 8, "bee": 8, "cow": 8}))
    config = create_small_config()
    network = build_network(
        config.model, num_classes=3, image_size=32, seed=0, checkpoint_card=None
    )
    resolved = resolve_config(config, data, network)
    return RunSpec(resolved.config, resolved.facts, (Phase(0, 1, 6),), num_images=24, num_gpus=2)


def build_run(run: RunSpec, case: dict[str, Any]) -> RunSpec:
    """Return the run with other settings and attributes."""
    settings = {key: value for key, value in case.items() if "." in key}
    attributes = {key: value for key, value in case.items() if "." not in key}
    if "facts" in attributes:
        attributes["facts"] = replace(run.facts, **attributes["facts"])
    return replace(run, config=replace_values(run.config, settings), **attributes)


def test_constraints_default_config_violates_none(default_run: RunSpec) -> None:
    check_constraints(default_run)
    check_constraints(build_run(default_run, PROBE))
    check_constraints(build_run(default_run, PROBE_ONLY))
    check_constraints(build_run(default_run, SHARDED))
    check_constraints(build_run(default_run, {**SHARDED, "phases": (Phase(0, 1, 1),)}))


def test_constraints_keys_are_unique_and_have_a_case() -> None:
    assert len({constraint.keys for constraint in CONSTRAINTS}) == len(CONSTRAINTS)
    assert {constraint.keys for constraint in CONSTRAINTS} == CASES.keys()


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda row: " ".join(row.keys))
def test_constraint_violated_raises_error_naming_its_keys(
    constraint: Constraint, default_run: RunSpec
) -> None:
    run = build_run(default_run, CASES[constraint.keys])
    assert not constraint.is_violated(default_run.config, default_run)
    assert constraint.is_violated(run.config, run)
    with pytest.raises(FinetuneError) as caught:
        check_constraints(run)
    assert type(caught.value) is constraint.error
    for key in constraint.keys:
        assert f"{key}=" in str(caught.value)
    assert "{config" not in str(caught.value)
    assert "{run" not in str(caught.value)


def test_constraints_too_few_images_are_reported_before_steps_that_follow_from_them(
    default_run: RunSpec,
) -> None:
    case = CASES["trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"]
    run = build_run(default_run, {**case, "optim.swa_fraction": 0.5})
    with pytest.raises(DataError, match=r"draws 24 training images"):
        check_constraints(run)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.batch_norm": "frozen"}, 1),
        ({"model.batch_norm": "train"}, 2),
        ({"model.batch_norm": "frozen", "augment.mixup": 0.2}, 2),
        ({"model.batch_norm": "frozen", "augment.cutmix": 1.0}, 2),
        # BatchNorm below the head is frozen while only the head trains
        ({"model.batch_norm": "train", "phases": (Phase(0, 1, 1),)}, 1),
    ],
)
def test_min_micro_batch_size_follows_mixing_and_batch_norm(
    settings: dict[str, Any], expected: int, default_run: RunSpec
) -> None:
    assert build_run(default_run, settings).min_micro_batch_size == expected


@pytest.mark.parametrize(
    ("settings", "batch_size", "micro_batch_size"),
    [
        ({"trainer.batch_size": 8}, 8, 8),
        ({"trainer.batch_size": 64}, 24, 24),
        (
            {
                "trainer.batch_size": 32,
                "trainer.devices": 2,
                "trainer.accumulate_grad_batches": 4,
            },
            24,
            3,
        ),
    ],
)
def test_batch_size_is_reduced_to_the_images_of_an_epoch(
    settings: dict[str, Any], batch_size: int, micro_batch_size: int, default_run: RunSpec
) -> None:
    run = build_run(default_run, settings)
    assert (run.batch_size, run.micro_batch_size) == (batch_size, micro_batch_size)
    assert run.num_steps == 2 * (24 // batch_size)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.name", "sgd"),
        ("optim.lr", 0.5),
        ("optim.params", {"eps": 1e-6}),
        ("optim.weight_decay", 0.0),
        ("optim.backbone_lr_scale", 0.5),
        ("lr_schedule.name", "step"),
        ("model.drop_rate", 0.5),
        ("trainer.early_stopping_patience", 3),
    ],
)
def test_setting_of_epochs_with_linear_probe_only_raises_error_naming_it(
    key: str, value: Any, animals: Path, tmp_path: Path
) -> None:
    name = key.replace(".", "__")
    settings = {"data__path": str(animals), "output": str(tmp_path / "run"), name: value}
    alone = create_small_config(
        **{
            "unfreeze__name": "linear_probe",
            "probe__enabled": "on",
            "trainer__epochs": 1,
            **settings,
        }
    )
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=.*unfreeze\.name=linear_probe"):
        finetune.fit(alone)
