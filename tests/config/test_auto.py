"""Tests of the rules behind "auto"."""

from typing import Any

import numpy as np
import pytest

from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.load import build_config, replace_values
from finetune.config.optimizer_defaults import (
    HEAD_LR,
    UNMEASURED_BACKBONE_LR_SCALE,
    WEIGHT_DECAY,
)
from finetune.config.recipe import compute_fixres_train_size
from finetune.config.schema import Config
from finetune.config.sections.optim import OPTIMIZER_NAMES

EXPLICIT: dict[str, Any] = {
    "data.image_size": 32,
    "data.train_image_size": (24, 32),
    "data.num_workers": 0,
    "probe.stages": "off",
    "model.batch_norm": "train",
    "probe.num_crops": 2,
    "probe.last_stage_epochs": 3,
    "unfreeze.name": "gradual",
    "probe.enabled": "off",
    "augment.name": "light",
    "augment.hflip": "off",
    "augment.vflip": "on",
    "augment.rot90": "on",
    "augment.min_crop_scale": 0.9,
    "optim.lr": 1e-5,
    "trainer.train_eval": "on",
    "optim.backbone_lr_scale": 0.5,
    "optim.layer_decay": 0.9,
    "model.head_init": "he",
    "optim.weight_decay": 0.2,
    "optim.momentum": 0.0,
    "optim.nesterov": "off",
    "optim.swa_fraction": 0.3,
    "trainer.epochs": 77,
    "trainer.batch_size": 5,
    "trainer.accumulate_grad_batches": 5,
    "trainer.precision": "16-mixed",
    "trainer.num_nodes": 2,
    "trainer.devices": 3,
    "trainer.monitor": "loss",
    "checkpoint.monitor": "loss",
    "lr_schedule.warmup_fraction": 0.2,
    "imbalance.strategy": "drw",
    "imbalance.post_hoc_strength": 0.5,
    "calibration.enabled": "on",
}


def build_facts(**changes: Any) -> Facts:
    defaults: dict[str, Any] = {
        "class_counts": [50, 50],
        "is_pretrained": True,
        "num_groups": 7,
        "image_size": 224,
        "has_fast_bf16": False,
        "free_cores": 8,
    }
    return Facts(**defaults | changes)


def choose(assignments: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    choices = choose_auto_values(build_config({}, assignments=assignments), build_facts(**changes))
    return {key: choice.value for key, choice in choices.items()}


def test_auto_explicit_values_are_kept() -> None:
    assert choose(EXPLICIT) == {}
    for key, value in EXPLICIT.items():
        others = choose({key: value})
        assert key not in others
        assert EXPLICIT.keys() - {key} <= others.keys() <= EXPLICIT.keys() | {"unfreeze.params"}


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_auto_choices_are_valid_and_complete(is_pretrained: bool) -> None:
    choices = choose(is_pretrained=is_pretrained)
    config = replace_values(Config(), choices)
    again = choose_auto_values(config, build_facts(is_pretrained=is_pretrained))
    # what a run measures stays open until then
    assert again.keys() == {key for key, value in choices.items() if value == "auto"}


def test_auto_pretrained_weights_get_smaller_learning_rates() -> None:
    keys = ("unfreeze.name", "model.batch_norm", "optim.backbone_lr_scale", "optim.layer_decay")
    pretrained, random = choose(), choose(is_pretrained=False)
    assert [random[key] for key in keys] == ["all", "train", 1.0, 1.0]
    assert [pretrained[key] for key in keys[:2]] == ["all", "frozen"]
    assert pretrained["optim.layer_decay"] < 1
    assert "unfreeze.params" not in random


def test_learning_rate_is_measured_after_a_probe() -> None:
    keys = ("optim.lr", "optim.backbone_lr_scale")
    for given, facts, expected in (
        ({}, {}, ("auto", 1.0)),
        ({"optim.lr": 3e-4}, {}, (None, 1.0)),
        ({"optim.name": "sgd"}, {}, ("auto", 1.0)),
        ({"optim.name": "sgd", "probe.enabled": "off"}, {}, (1e-2, 0.05)),
        ({"probe.enabled": "off"}, {}, (1e-3, 0.1)),
        ({}, {"has_linear_head": False}, (1e-3, 0.1)),
        ({}, {"is_pretrained": False}, (1e-3, 1.0)),
    ):
        choices = choose(given, **facts)
        assert tuple(choices.get(key) for key in keys) == expected, (given, facts)


def test_each_optimizer_is_measured_and_has_a_rate_of_its_own_without_a_probe() -> None:
    for name in OPTIMIZER_NAMES:
        assert choose({"optim.name": name})["optim.lr"] == "auto"
        choices = choose({"optim.name": name, "probe.enabled": "off"})
        assert (choices["optim.lr"], choices["optim.backbone_lr_scale"]) == (
            HEAD_LR[name], UNMEASURED_BACKBONE_LR_SCALE[name],
        )  # fmt: skip


def test_weight_decay_suits_the_optimizer_and_has_a_reason() -> None:
    assert choose()["optim.weight_decay"] == 0.05
    assert choose({"optim.name": "sgd"})["optim.weight_decay"] == 1e-4
    for name in OPTIMIZER_NAMES:
        config = build_config({}, assignments={"optim.name": name})
        choice = choose_auto_values(config, build_facts())["optim.weight_decay"]
        assert choice == WEIGHT_DECAY[name]
        assert choice.reason or name == "adamw"


def test_momentum_follows_the_optimizer_and_one_cycle() -> None:
    cycle = {"lr_schedule.name": "one_cycle"}
    for given, expected in (
        ({}, (0.0, "off")),
        ({"optim.name": "sgd"}, (0.9, "on")),
        ({"optim.name": "rmsprop"}, (0.0, "off")),
        ({"optim.name": "sgd", **cycle}, (0.95, "on")),
        ({"optim.name": "adamw", **cycle}, (0.0, "off")),
        (
            {"optim.name": "sgd", **cycle, "lr_schedule.params": {"cycle_momentum": False}},
            (0.9, "on"),
        ),
    ):
        choices = choose(given)
        assert (choices["optim.momentum"], choices["optim.nesterov"]) == expected, given
    plain = choose({"optim.name": "sgd", "optim.momentum": 0.0})
    assert plain["optim.nesterov"] == "off"
    assert choose(cycle)["lr_schedule.warmup_fraction"] == 0.0


@pytest.mark.parametrize(
    ("num_images", "fraction"),
    [(200, 0.3), (1_000, 0.161), (5_000, 0.064), (20_000, 0.05)],
)
def test_warm_up_after_a_probe_is_at_most_30_steps_or_a_third(
    num_images: int, fraction: float
) -> None:
    counts = [num_images // 2] * 2
    assert choose(class_counts=counts)["lr_schedule.warmup_fraction"] == fraction
    off = choose({"probe.enabled": "off"}, class_counts=counts)
    assert off["lr_schedule.warmup_fraction"] == 0.05


def test_warm_up_follows_the_epochs_and_the_batch_size_of_the_user() -> None:
    given = {"trainer.epochs": 50, "trainer.batch_size": 10}
    choices = choose(given, class_counts=[100, 100])
    assert choices["lr_schedule.warmup_fraction"] == 0.05
    given = {"trainer.epochs": 1, "trainer.batch_size": 500}
    choices = choose(given, class_counts=[100, 100])
    assert choices["lr_schedule.warmup_fraction"] == 0.3


def test_best_epoch_is_selected_by_loss_unless_a_metric_is_set() -> None:
    assert choose()["checkpoint.monitor"] == "calibrated_loss"
    assert choose({"trainer.monitor": "macro_f1"})["checkpoint.monitor"] == "macro_f1"


def test_auto_choices_have_reasons() -> None:
    choices = choose_auto_values(Config(), build_facts(class_counts=[1500, 600], num_val_images=90))
    reasons = {key: choice.reason for key, choice in choices.items()}
    assert "2,100" in reasons["trainer.epochs"]
    assert "measured" in reasons["optim.lr"]
    assert "2.5" in reasons["trainer.monitor"]
    assert "90" in reasons["calibration.enabled"]
    random = choose_auto_values(Config(), build_facts(is_pretrained=False))
    assert random["unfreeze.name"].reason


def test_unfreeze_auto_without_probe_is_head_first() -> None:
    assert choose({"probe.enabled": "off"})["unfreeze.name"] == "head_first"
    assert choose(has_linear_head=False)["unfreeze.name"] == "head_first"
    assert choose({"probe.enabled": "on"})["unfreeze.name"] == "all"
    assert choose({"unfreeze.params": {"epochs": 5}})["unfreeze.name"] == "head_first"


def test_probe_auto_is_on_for_pretrained_weights() -> None:
    assert choose()["probe.enabled"] == "on"
    assert choose(is_pretrained=False)["probe.enabled"] == "off"
    assert choose(has_linear_head=False)["probe.enabled"] == "off"
    assert choose({"trainer.strategy": "fsdp"})["probe.enabled"] == "off"


def test_layer_decay_over_all_groups_equals_that_of_five_stages() -> None:
    assert choose(num_groups=6)["optim.layer_decay"] == 0.7
    for num_groups in (7, 14, 26, 50):
        decay = choose(num_groups=num_groups)["optim.layer_decay"]
        # from the last backbone group to the first one are num_groups - 2 steps
        assert decay ** (num_groups - 2) == pytest.approx(0.7**4, rel=0.01)
    assert choose(num_groups=3)["optim.layer_decay"] == 0.7


def test_head_first_epochs_are_a_fraction_of_all() -> None:
    for epochs in range(2, 40):
        params = choose({"trainer.epochs": epochs, "probe.enabled": "off"})["unfreeze.params"]
        assert 1 <= params["epochs"] < epochs
        assert params["epochs"] == pytest.approx(0.3 * epochs, abs=0.5)
    assert choose({"trainer.epochs": 1}).get("unfreeze.params", {}) == {}


def test_explicit_unfreeze_params_are_kept() -> None:
    assert "unfreeze.params" not in choose({"unfreeze.params": {"epochs": 5}})
    assert "unfreeze.params" not in choose({"unfreeze.name": "head_first"})


@pytest.mark.parametrize(
    ("num_images", "size_class"), [(4_999, 0), (5_000, 1), (49_999, 1), (50_000, 2)]
)
def test_larger_sets_get_larger_batches_and_fewer_epochs(num_images: int, size_class: int) -> None:
    choices = choose(class_counts=[num_images - 10, 10])
    assert choices["trainer.batch_size"] == 32 * 2**size_class
    assert choices["trainer.epochs"] == [6, 6, 3][size_class]
    unprobed = choose({"probe.enabled": "off"}, class_counts=[num_images - 10, 10])
    assert unprobed["trainer.epochs"] == [10, 8, 5][size_class]
    scratch = choose(class_counts=[num_images - 10, 10], is_pretrained=False)
    assert scratch["trainer.epochs"] == 3 * unprobed["trainer.epochs"]


@pytest.mark.parametrize(("num_images", "expected"), [(998, 1), (1_000, 0)])
def test_probe_num_crops_for_the_last_stage_with_few_images_is_one(
    num_images: int, expected: int
) -> None:
    counts = [num_images // 2, num_images // 2]

    def choose_num_crops(settings: dict[str, Any]) -> Any:
        return choose({"probe.depth": 2, **settings}, class_counts=counts)["probe.num_crops"]

    assert choose_num_crops({}) == expected
    assert choose_num_crops({"probe.depth": 1}) == 0
    assert choose_num_crops({"probe.enabled": "off"}) == 0
    for augment in ("none", "mine.json"):
        assert choose_num_crops({"augment.name": augment}) == 0


def test_epochs_with_frozen_layers_are_more() -> None:
    assert choose({"unfreeze.name": "gradual"})["trainer.epochs"] == 10
    assert choose({"unfreeze.params": {"epochs": 5}})["trainer.epochs"] == 10
    assert choose({"unfreeze.name": "all"})["trainer.epochs"] == 25  # of 100 images
    assert choose({"unfreeze.name": "all"}, class_counts=[200, 200])["trainer.epochs"] == 6
    assert choose({"unfreeze.name": "all"}, class_counts=[500, 500])["trainer.epochs"] == 6
    assert choose({"unfreeze.name": "gradual"}, class_counts=[500, 500])["trainer.epochs"] == 10


@pytest.mark.parametrize(("num_images", "epochs"), [(20, 30), (100, 25), (250, 10), (450, 6)])
def test_epochs_with_few_images_are_more(num_images: int, epochs: int) -> None:
    assert choose(class_counts=[num_images // 2, num_images // 2])["trainer.epochs"] == epochs


@pytest.mark.parametrize(
    ("assignments", "changes", "expected"),
    [
        ({}, {}, (192, 192)),
        ({}, {"image_size": 299}, (256, 256)),
        ({"data.image_size": 320}, {}, (256, 256)),
        ({"data.image_size": 128}, {}, (128, 128)),
        ({"augment.name": "strong"}, {}, (160, 160)),
        ({"augment.min_crop_scale": 0.8}, {}, (224, 224)),
        ({"augment.min_crop_scale": 1.0}, {}, (224, 224)),
        ({"augment.name": "none"}, {}, (224, 224)),
        ({"augment.name": "mine.json"}, {}, (224, 224)),
        ({}, {"supports_any_size": False}, (224, 224)),
        ({}, {"is_pretrained": False}, (224, 224)),
    ],
)
def test_train_image_size_is_smaller_if_supported(
    assignments: dict[str, Any], changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert choose(assignments, **changes)["data.train_image_size"] == expected


def test_objects_look_as_large_in_random_crops_as_in_evaluation_on_average() -> None:
    areas = np.random.default_rng(0).uniform(0.35, 1, 100_000)
    side = compute_fixres_train_size(2048, min_crop_scale=0.35)
    assert side == pytest.approx(2048 * np.sqrt(areas).mean(), abs=16)


@pytest.mark.parametrize(
    ("processes", "nodes", "assignments", "expected"),
    [
        (3, 1, {}, 33),
        (6, 1, {}, 36),
        (8, 8, {}, 64),
        (1, 1, {"trainer.devices": 3, "trainer.accumulate_grad_batches": 4}, 36),
        (4, 1, {"trainer.accumulate_grad_batches": 2}, 32),
        (6, 1, {"trainer.batch_size": 32}, None),
    ],
)
def test_batch_size_auto_is_divisible_by_micro_batches(
    processes: int, nodes: int, assignments: dict[str, Any], expected: int | None
) -> None:
    counts = [2000, 2000]
    choices = choose(
        assignments, processes_per_node=processes, num_nodes=nodes, class_counts=counts
    )
    assert choices.get("trainer.batch_size") == expected


@pytest.mark.parametrize(
    ("counts", "monitor"),
    [([50, 50], "accuracy"), ([20, 10], "accuracy"), ([21, 10], "macro_f1"), ([9, 0], "macro_f1")],
)
def test_monitor_follows_imbalance_ratio(counts: list[int], monitor: str) -> None:
    assert choose(class_counts=counts)["trainer.monitor"] == monitor


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("free_cores", "processes", "workers"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 2), (8, 1, 7), (64, 1, 16), (8, 2, 3), (4, 4, 0), (2, 4, 0)],
)
def test_num_workers_leave_a_core_to_each_process(
    free_cores: int, processes: int, workers: int, accelerator: str
) -> None:
    hardware: dict[str, Any] = {"free_cores": free_cores, "accelerator": accelerator}
    choices = choose(**hardware, processes_per_node=processes)
    assert choices["data.num_workers"] == (min(2, workers) if accelerator == "cpu" else workers)
    assert choices["trainer.devices"] == processes
    # explicit devices take precedence over the processes of the launcher
    explicit = choose({"trainer.devices": processes}, **hardware, processes_per_node=7)
    assert explicit["data.num_workers"] == choices["data.num_workers"]


def test_precision_and_image_size_follow_hardware_and_weights() -> None:
    choices = choose(has_fast_bf16=True, image_size=288)
    assert (choices["trainer.precision"], choices["data.image_size"]) == ("bf16-mixed", 288)
    assert choose()["trainer.precision"] == "32-true"


@pytest.mark.parametrize(("num_val_images", "expected"), [(0, "off"), (29, "off"), (30, "on")])
def test_calibration_auto_needs_30_validation_images(num_val_images: int, expected: str) -> None:
    assert choose(num_val_images=num_val_images)["calibration.enabled"] == expected
    hinge = choose({"loss.name": "hinge"}, num_val_images=num_val_images)
    assert hinge["calibration.enabled"] == ("on" if num_val_images else "off")


def test_post_hoc_strength_is_chosen_on_held_out_images_if_post_hoc_is_automatic() -> None:
    key = "imbalance.post_hoc_strength"
    assert choose(class_counts=[50, 10])[key] == "held_out"
    assert choose(class_counts=[50, 11])[key] == 1
    assert choose({"imbalance.strategy": "post_hoc"}, class_counts=[50, 10])[key] == 1
    assert choose({"loss.name": "focal"}, class_counts=[50, 10])[key] == 1


@pytest.mark.parametrize(
    ("assignments", "facts", "expected", "reason"),
    [
        ({}, {"has_fast_bf16": False, "depthwise_density": 5.0}, "32-true", ""),
        ({}, {"depthwise_density": 1.8}, "bf16-mixed", "faster"),
        ({}, {"depthwise_density": 2.2}, "32-true", "depthwise convolutions"),
        ({"unfreeze.name": "linear_probe"}, {"depthwise_density": 2.2}, "bf16-mixed", "faster"),
        ({}, {"accelerator": "cuda", "depthwise_density": 2.2}, "bf16-mixed", ""),
    ],
)
def test_auto_precision_on_cpu_follows_the_depthwise_density(
    assignments: dict[str, Any], facts: dict[str, Any], expected: str, reason: str
) -> None:
    choices = choose_auto_values(
        build_config({}, assignments=assignments), build_facts(**{"has_fast_bf16": True, **facts})
    )
    choice = choices["trainer.precision"]
    assert choice.value == expected
    assert reason in choice.reason
    assert bool(reason) == bool(choice.reason)
