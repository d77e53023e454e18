"""Tests of the plan of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import finetune
from finetune.bundle.bundle import load_model
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def build_plan(photos: Path, **sections: Any) -> dict[str, Any]:
    tree = {
        "data": {"path": str(photos), "image_size": 32},
        "model": {"backbone": "resnet10t", "weights": "random"},
        "trainer": {"accelerator": "cpu", "epochs": 6},
        **sections,
    }
    plan: dict[str, Any] = finetune.plan_fit(finetune.Config.model_validate(tree))
    return plan


def test_plan_is_json_and_describes_the_run(trained: FitResult, insects: Path) -> None:
    plan = json.loads(json.dumps(dict(trained.plan)))
    assert plan == trained.plan, "JSON changes no value"
    assert plan["data"]["path"] == str(insects)
    assert plan["data"]["classes"] == list(CLASSES)
    assert plan["data"]["num_images"] == {"train": 24, "val": 7, "test": 7}
    assert sum(plan["data"]["class_counts"]["train"].values()) == 24
    counts = plan["data"]["class_counts"]["train"].values()
    assert plan["data"]["imbalance_ratio"] == pytest.approx(max(counts) / min(counts), abs=0.01)
    network = load_model(trained.run_dir).network
    parameters = sum(p.numel() for p in network.parameters())
    assert plan["model"]["num_parameters"] == parameters
    assert plan["training"]["steps_per_epoch"] == 24 // 8
    assert [p["depth"] for p in plan["phases"]] == [1, len(plan["model"]["layer_groups"])]
    head, whole = plan["phases"]
    assert (head["first_epoch"], head["last_epoch"]) == (1, 1)
    assert head["num_parameters"] == 512 * 3 + 3
    assert whole["num_parameters"] == parameters


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("all", {}, [(1, 6, "all")]),
        ("linear_probe", {}, [(1, 6, 1)]),
        ("head_first", {"epochs": 2}, [(1, 2, 1), (3, 6, "all")]),
        (
            "milestones",
            {"depths": {"0": 1, "3": 2, "5": 1.0}},
            [(1, 3, 1), (4, 5, 2), (6, 6, "all")],
        ),
    ],
)
def test_plan_phases_cover_every_epoch_once(
    photos: Path, name: str, params: dict[str, Any], expected: list[tuple[int, int, Any]]
) -> None:
    plan = build_plan(photos, unfreeze={"name": name, "params": params})
    groups = plan["model"]["layer_groups"]
    assert [(p["first_epoch"], p["last_epoch"], p["depth"]) for p in plan["phases"]] == [
        (first, last, len(groups) if depth == "all" else depth) for first, last, depth in expected
    ]
    for phase in plan["phases"]:
        assert phase["groups"] == list(phase["lr"]) == groups[: phase["depth"]]


def test_plan_has_a_cost_for_each_phase(photos: Path) -> None:
    plan = build_plan(photos, unfreeze={"name": "head_first", "params": {"epochs": 2}})
    costs = [(p["first_epoch"], p["last_epoch"]) for p in plan["cost"]["phases"]]
    assert costs == [(p["first_epoch"], p["last_epoch"]) for p in plan["phases"]]
    assert plan["cost"]["micro_batch_size"] == plan["training"]["batch_size"]
    # float32 parameters and buffers; BatchNorm statistics are small
    parameters = 4 * plan["model"]["num_parameters"] / 1e9
    assert plan["cost"]["memory_gb"]["parameters"] == pytest.approx(parameters, abs=0.001)
    assert plan["cost"]["memory_gb"]["optimizer"] == pytest.approx(2 * parameters, abs=0.001)


def test_plan_phases_have_learning_rates_and_batch_norm_mode(photos: Path) -> None:
    plan = build_plan(
        photos,
        unfreeze={"name": "head_first", "params": {"epochs": 1}},
        optim={"lr": 0.01, "backbone_lr_scale": 0.1, "layer_decay": 0.5},
    )
    head, whole = plan["phases"]
    assert head["lr"] == {"head": 0.01}
    expected = [0.01] + [0.01 * 0.1 * 0.5**k for k in range(len(whole["groups"]) - 1)]
    assert list(whole["lr"].values()) == pytest.approx(expected)
    assert head["batch_norm"] == "frozen"
    assert whole["batch_norm"] == "train"


def test_plan_lists_overrides(photos: Path) -> None:
    plan = build_plan(photos, seed=5)
    assert plan["overrides"] == {
        "data.path": str(photos),
        "data.image_size": 32,
        "model.backbone": "resnet10t",
        "model.weights": "random",
        "trainer.accelerator": "cpu",
        "trainer.epochs": 6,
        "seed": 5,
    }


def test_plan_fit_writes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    plan = build_plan(photos)
    assert Path(plan["run_dir"]).parent == Path("runs")
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_plan_counts_rejected_files(photos: Path) -> None:
    (photos / "cat" / "empty.png").touch()
    (photos / "notes.txt").touch()
    assert build_plan(photos)["data"]["num_rejected"] == 2


def test_plan_fit_reduces_batch_size_to_the_images_with_a_note(photos: Path) -> None:
    recorder = RecordingReporter()
    config = finetune.Config.model_validate(
        {
            "data": {"path": str(photos), "image_size": 32},
            "model": {"backbone": "resnet10t", "weights": "random"},
            "trainer": {"accelerator": "cpu", "batch_size": 64},
        }
    )
    plan = finetune.plan_fit(config, reporter=recorder)
    assert plan["training"]["batch_size"] == 8 == plan["data"]["num_images"]["train"]
    assert any("8 instead of 64" in note for note in recorder.notes)


def test_plan_of_a_linear_probe_lists_no_settings_of_epochs(photos: Path) -> None:
    plan = build_plan(
        photos,
        unfreeze={"name": "linear_probe"},
        probe={"enabled": "on"},
        trainer={"accelerator": "cpu"},
    )
    keys = [choice["key"] for choice in plan["recipe"]]
    assert "probe.enabled" not in keys, "it is given"
    assert keys
    assert [key for key in keys if key.startswith(("optim.", "lr_schedule."))] == []


def test_plan_of_other_channels_without_batch_norm_promises_neither(photos: Path) -> None:
    plan = build_plan(
        photos,
        data={"path": str(photos), "channels": 4},
        model={"backbone": "test_vit", "weights": "random"},
    )
    (reason,) = (row["reason"] for row in plan["recipe"] if row["key"] == "augment.name")
    assert "jitter" not in reason
    assert {phase["batch_norm"] for phase in plan["phases"]} == {"none"}
    assert "model.batch_norm" not in [row["key"] for row in plan["recipe"]]
