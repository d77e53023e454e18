"""What auto stands for, and that nothing else is touched."""

from typing import Any

import pytest

from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.load import build_config, replace_values
from finetune.config.schema import Config

EXPLICIT: dict[str, Any] = {
    "data.image_size": 32,
    "data.train_image_size": (24, 32),
    "data.num_workers": 0,
    "model.batch_norm": "train",
    "probe.num_crops": 2,
    "probe.last_stage_epochs": 3,
    "unfreeze.name": "gradual",
    "probe.enabled": "off",
    "augment.name": "none",
    "optim.lr": 1e-5,
    "optim.backbone_lr_scale": 0.5,
    "optim.layer_decay": 0.9,
    "optim.swa_fraction": 0.3,
    "trainer.epochs": 77,
    "trainer.batch_size": 5,
    "trainer.accumulate_grad_batches": 5,
    "trainer.precision": "16-mixed",
    "trainer.num_nodes": 2,
    "trainer.devices": 3,
    "trainer.monitor": "loss",
    "imbalance.strategy": "drw",
    "calibration.enabled": "on",
}


def facts(**changes: Any) -> Facts:
    known: dict[str, Any] = {
        "class_counts": [50, 50],
        "pretrained": True,
        "num_groups": 7,
        "image_size": 224,
        "fast_bf16": False,
        "free_cores": 8,
    }
    return Facts(**known | changes)


def chosen(assignments: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    choices = choose_auto_values(build_config({}, assignments=assignments), facts(**changes))
    return {key: choice.value for key, choice in choices.items()}


def test_explicit_values_are_never_chosen_again() -> None:
    assert chosen(EXPLICIT) == {}
    for key, value in EXPLICIT.items():
        others = chosen({key: value})
        assert key not in others
        assert EXPLICIT.keys() - {key} <= others.keys() <= EXPLICIT.keys() | {"unfreeze.params"}


@pytest.mark.parametrize("pretrained", [True, False])
def test_chosen_values_are_valid_and_leave_nothing_more_to_choose(pretrained: bool) -> None:
    config = replace_values(Config(), chosen(pretrained=pretrained))
    assert choose_auto_values(config, facts(pretrained=pretrained)) == {}


def test_pretrained_weights_are_spared_and_random_ones_are_not() -> None:
    keys = ("unfreeze.name", "model.batch_norm", "optim.backbone_lr_scale", "optim.layer_decay")
    spared, random = chosen(), chosen(pretrained=False)
    assert [random[key] for key in keys] == ["all", "train", 1.0, 1.0]
    assert [spared[key] for key in keys[:2]] == ["all", "frozen"]
    assert spared["optim.backbone_lr_scale"] < 1
    assert spared["optim.layer_decay"] < 1
    assert "unfreeze.params" not in random


@pytest.mark.parametrize(("rms", "scale"), [(0.0047, 0.094), (0.13, 2.6), (0.0, 1e-4), (9.0, 10)])
def test_a_step_of_adamw_moves_the_backbone_by_a_share_of_its_own_size(
    rms: float, scale: float
) -> None:
    found = chosen(weight_rms=rms)
    assert found["optim.backbone_lr_scale"] == pytest.approx(scale)
    assert found["optim.lr"] == 1e-3
    # the rate that a user types moves both
    assert chosen({"optim.lr": 0.1}, weight_rms=rms)["optim.backbone_lr_scale"] == scale
    assert chosen(weight_rms=rms, batch_norm=False)["optim.backbone_lr_scale"] == min(scale, 0.1)
    assert chosen({"optim.name": "sgd"}, weight_rms=rms)["optim.backbone_lr_scale"] == 0.05
    assert chosen(weight_rms=rms, pretrained=False)["optim.backbone_lr_scale"] == 1.0


def test_a_choice_of_the_recipe_says_why() -> None:
    choices = choose_auto_values(
        Config(), facts(class_counts=[1500, 600], weight_rms=0.0047, num_val=90)
    )
    reasons = {key: choice.reason for key, choice in choices.items()}
    assert reasons["trainer.epochs"] == "2,100 training images, after a linear probe"
    assert "0.0047) by 2.0%" in reasons["optim.backbone_lr_scale"]
    assert reasons["trainer.monitor"] == "imbalance ratio 2.5"
    assert reasons["calibration.enabled"] == "90 validation images"
    untaught = choose_auto_values(Config(), facts(pretrained=False))
    assert untaught["unfreeze.name"].reason == "no pretrained weights"


def test_a_random_head_trains_alone_first_and_a_fitted_one_does_not() -> None:
    assert chosen({"probe.enabled": "off"})["unfreeze.name"] == "head_first"
    assert chosen(linear_head=False)["unfreeze.name"] == "head_first"
    assert chosen({"probe.enabled": "on"})["unfreeze.name"] == "all"
    assert chosen({"unfreeze.params": {"epochs": 5}})["unfreeze.name"] == "head_first"


def test_a_backbone_that_knows_something_is_probed() -> None:
    assert chosen()["probe.enabled"] == "on"
    assert chosen(pretrained=False)["probe.enabled"] == "off"
    assert chosen(linear_head=False)["probe.enabled"] == "off"
    assert chosen({"trainer.strategy": "fsdp"})["probe.enabled"] == "off"


def test_the_decay_over_all_groups_is_that_of_five_stages() -> None:
    assert chosen(num_groups=6)["optim.layer_decay"] == 0.7
    for num_groups in (7, 14, 26, 50):
        decay = chosen(num_groups=num_groups)["optim.layer_decay"]
        # head and stem aside, num_groups - 2 steps lead from the last backbone group to the first
        assert decay ** (num_groups - 2) == pytest.approx(0.7**4, rel=0.01)
    assert chosen(num_groups=3)["optim.layer_decay"] == 0.7


def test_the_head_trains_alone_for_some_but_not_all_epochs() -> None:
    for epochs in range(2, 40):
        params = chosen({"trainer.epochs": epochs, "probe.enabled": "off"})["unfreeze.params"]
        assert 1 <= params["epochs"] < epochs
        assert params["epochs"] == pytest.approx(0.3 * epochs, abs=0.5)
    assert chosen({"trainer.epochs": 1}).get("unfreeze.params", {}) == {}


def test_parameters_of_the_schedule_that_the_user_gave_stay() -> None:
    assert "unfreeze.params" not in chosen({"unfreeze.params": {"epochs": 5}})
    assert "unfreeze.params" not in chosen({"unfreeze.name": "head_first"})


@pytest.mark.parametrize(("num_images", "more"), [(4_999, 0), (5_000, 1), (49_999, 1), (50_000, 2)])
def test_larger_sets_take_larger_batches_and_fewer_epochs(num_images: int, more: int) -> None:
    found = chosen(class_counts=[num_images - 10, 10])
    assert found["trainer.batch_size"] == 32 * 2**more
    assert found["trainer.epochs"] == [6, 6, 3][more]
    untaught = chosen({"probe.enabled": "off"}, class_counts=[num_images - 10, 10])
    assert untaught["trainer.epochs"] == [10, 8, 5][more]
    scratch = chosen(class_counts=[num_images - 10, 10], pretrained=False)
    assert scratch["trainer.epochs"] == 3 * untaught["trainer.epochs"]


@pytest.mark.parametrize(("num_images", "views"), [(998, 1), (1_000, 0)])
def test_of_few_images_the_probe_sees_more(num_images: int, views: int) -> None:
    counts = [num_images // 2, num_images // 2]
    assert chosen(class_counts=counts)["probe.num_crops"] == views
    assert chosen({"probe.enabled": "off"}, class_counts=counts)["probe.num_crops"] == 0
    for uncut in ("none", "mine.json"):
        assert chosen({"augment.name": uncut}, class_counts=counts)["probe.num_crops"] == 0


def test_layers_that_wait_get_more_epochs() -> None:
    assert chosen({"unfreeze.name": "gradual"})["trainer.epochs"] == 10
    assert chosen({"unfreeze.params": {"epochs": 5}})["trainer.epochs"] == 10
    assert chosen({"unfreeze.name": "all"})["trainer.epochs"] == 10  # of 100 images
    assert chosen({"unfreeze.name": "all"}, class_counts=[200, 200])["trainer.epochs"] == 4
    assert chosen({"unfreeze.name": "all"}, class_counts=[500, 500])["trainer.epochs"] == 6
    assert chosen({"unfreeze.name": "gradual"}, class_counts=[500, 500])["trainer.epochs"] == 10


@pytest.mark.parametrize(("num_images", "epochs"), [(20, 10), (100, 10), (125, 8), (250, 4)])
def test_a_handful_of_images_is_seen_more_often(num_images: int, epochs: int) -> None:
    assert chosen(class_counts=[num_images // 2, num_images // 2])["trainer.epochs"] == epochs


@pytest.mark.parametrize(
    ("assignments", "changes", "expected"),
    [
        ({}, {}, (160, 160)),
        ({}, {"image_size": 299}, (224, 224)),
        ({"data.image_size": 320}, {}, (224, 224)),
        ({"data.image_size": 128}, {}, (128, 128)),
        ({"augment.name": "none"}, {}, (224, 224)),
        ({"augment.name": "mine.json"}, {}, (224, 224)),
        ({}, {"any_size": False}, (224, 224)),
        ({}, {"pretrained": False}, (224, 224)),
    ],
)
def test_training_images_are_smaller_where_they_can_be(
    assignments: dict[str, Any], changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert chosen(assignments, **changes)["data.train_image_size"] == expected


@pytest.mark.parametrize(
    ("processes", "nodes", "asked", "batch"),
    [
        (3, 1, {}, 33),
        (6, 1, {}, 36),
        (8, 8, {}, 64),
        (1, 1, {"trainer.devices": 3, "trainer.accumulate_grad_batches": 4}, 36),
        (4, 1, {"trainer.accumulate_grad_batches": 2}, 32),
        (6, 1, {"trainer.batch_size": 32}, None),
    ],
)
def test_a_batch_that_nobody_chose_divides_over_the_processes(
    processes: int, nodes: int, asked: dict[str, Any], batch: int | None
) -> None:
    found = chosen(asked, processes_per_node=processes, num_nodes=nodes, class_counts=[2000, 2000])
    assert found.get("trainer.batch_size") == batch


@pytest.mark.parametrize(
    ("counts", "monitor"),
    [([50, 50], "accuracy"), ([20, 10], "accuracy"), ([21, 10], "macro_f1"), ([9, 0], "macro_f1")],
)
def test_the_monitor_suits_the_class_sizes(counts: list[int], monitor: str) -> None:
    assert chosen(class_counts=counts)["trainer.monitor"] == monitor


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("free_cores", "processes", "workers"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 2), (8, 1, 7), (64, 1, 16), (8, 2, 3), (4, 4, 0), (2, 4, 0)],
)
def test_workers_leave_a_core_to_each_process_and_on_the_cpu_most_of_them(
    free_cores: int, processes: int, workers: int, accelerator: str
) -> None:
    machine: dict[str, Any] = {"free_cores": free_cores, "accelerator": accelerator}
    found = chosen(**machine, processes_per_node=processes)
    assert found["data.num_workers"] == (min(2, workers) if accelerator == "cpu" else workers)
    assert found["trainer.devices"] == processes
    # the processes that the user asks for count, and not those of the cluster job
    asked = chosen({"trainer.devices": processes}, **machine, processes_per_node=7)
    assert asked["data.num_workers"] == found["data.num_workers"]


def test_machine_and_weights_decide_the_rest() -> None:
    found = chosen(fast_bf16=True, image_size=288)
    assert (found["trainer.precision"], found["data.image_size"]) == ("bf16-mixed", 288)
    assert chosen()["trainer.precision"] == "32-true"
    assert chosen({"optim.name": "sgd"})["optim.lr"] > chosen()["optim.lr"]


@pytest.mark.parametrize(("num_val", "expected"), [(0, "off"), (199, "off"), (200, "on")])
def test_few_validation_images_give_no_temperature(num_val: int, expected: str) -> None:
    assert chosen(num_val=num_val)["calibration.enabled"] == expected
