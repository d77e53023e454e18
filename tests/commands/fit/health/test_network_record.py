"""Tests of ``finetune.commands.fit.health``: ``network.json`` of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.commands.fit.fit import fit
from finetune.commands.fit.health import network_record
from finetune.system.run_folder import RunFolder
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    create_small_training,
    load_weights,
)

pytestmark = pytest.mark.runs


def _fit(place: Path, name: str, **assignments: object) -> tuple[Path, RecordingReporter]:
    reporter = RecordingReporter()
    config = create_small_config(
        data__path=str(place / "photos"),
        model__weights=str(place / "weights.pth"),
        output=str(place / name),
        optim__lr=0.01,
        report__enabled="off",
        **assignments,
    )
    return fit(config, reporter=reporter).run_dir, reporter


def _read(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "network.json").read_text(encoding="utf-8"))
    return tree


def test_run_records_its_layers_and_trains_to_the_same_bits(place: Path) -> None:
    run, reporter = _fit(place, "on")
    bare, _ = _fit(place, "off", report__network_health="off")

    assert not (bare / "network.json").exists()
    assert_same_bits(load_weights(run), load_weights(bare))
    assert not [warning for warning in reporter.warnings if "layers" in warning]
    tree = _read(run)
    assert tree["num_images"] == 8
    names = [[layer["name"] for layer in tree[state]["layers"]] for state in ("before", "after")]
    assert names[0] == names[1]
    assert "layer4" in names[0]
    weights = {row["name"]: row for row in tree["weights"]}
    start, end = load_weights(run, "start"), load_weights(run, "best")
    name = "classifier.network.layer4.0.conv2.weight"
    change = float((end[name] - start[name]).norm() / start[name].norm())
    assert weights["layer4.0.conv2"]["relative_change"] == pytest.approx(change, rel=1e-4, abs=1e-9)
    assert weights["layer4.0.conv2"]["group"] == "layer4"
    assert [row["name"] for row in tree["gradients"]] == list(weights)
    assert all(row["norm"] > 0 for row in tree["gradients"])


def test_run_without_probe_is_compared_with_the_weights_of_its_config(place: Path) -> None:
    run, _ = _fit(place, "run", probe__enabled="off", trainer__epochs=1, unfreeze__name="all")

    changes = {row["name"]: row["relative_change"] for row in _read(run)["weights"]}
    torch_weights = torch.load(place / "weights.pth", weights_only=True)
    name = "layer4.0.conv1.weight"
    start, end = torch_weights[name], load_weights(run, "best")[f"classifier.network.{name}"]
    expected = float((end - start).norm() / start.norm())
    assert expected > 0
    assert changes["layer4.0.conv1"] == pytest.approx(expected, rel=1e-4)


def test_failure_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(network_record, "measure_layers_health", fail)
    reporter, run = RecordingReporter(), RunFolder(place)
    training = create_small_training(place / "photos")
    network_record.record_start(run, training, None, reporter)

    assert not run.network_path.exists()
    (warning,) = reporter.warnings
    assert "could not be measured: no room." in warning
    assert "report.network_health=off" in warning
