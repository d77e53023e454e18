"""Runs that are averaged to one network, against a plain average and a plain greedy choice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError
from finetune.models.weight_soup import average_networks
from tests.commands.ensembles.conftest import Runs, train
from tests.support.helpers import RecordingReporter

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def frozen(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return runs with frozen BatchNorm statistics; never change them."""
    folder = tmp_path_factory.mktemp("frozen")
    return [
        train(
            insects,
            folder / str(number),
            optim={"lr": lr},
            model={"backbone": "test_resnet", "weights": "random", "batch_norm": "frozen"},
        )
        for number, lr in enumerate((0.003, 0.03, 0.3))
    ]


def test_uniform_soup_is_average_of_all_weights(frozen: list[Path], tmp_path: Path) -> None:
    result = finetune.export(frozen, tmp_path / "soup", soup="uniform")
    assert result.soup is not None
    assert [run["chosen"] for run in result.soup["runs"]] == [True] * 3
    assert result.soup["batch_norm"] == "unchanged"
    found = load_model(tmp_path / "soup")
    assert not found.members
    expected = average_networks([load_model(run).network for run in frozen]).state_dict()
    scale = found.card.facts.get("temperature_in_head", 1.0)
    for name, value in found.network.state_dict().items():
        factor = 1 / scale if name.startswith("fc.") else 1
        torch.testing.assert_close(
            value, expected[name] * factor if factor != 1 else expected[name]
        )
    assert found.card.facts["soup"] == result.soup
    assert set(found.card.facts["metrics"]) == {"val", "test"}


def test_greedy_soup_adds_runs_while_validation_accuracy_does_not_fall(
    frozen: list[Path], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    result = finetune.export(frozen, tmp_path / "soup", soup="greedy", reporter=reporter)
    assert result.soup is not None
    by_run = {run: evaluate_on_val(run) for run in frozen}
    order = sorted(frozen, key=lambda run: (-by_run[run][0], by_run[run][1]))
    assert [run["run"] for run in result.soup["runs"]] == [run.name for run in order]
    chosen = [run["chosen"] for run in result.soup["runs"]]
    assert chosen[0]
    assert result.soup["val_accuracy"] >= by_run[order[0]][0]
    assert any("greedy" in note for note in reporter.notes)
    facts = load_model(tmp_path / "soup").card.facts
    metrics = facts["metrics"]
    assert facts["evaluations"]["val"]["validation_choices"] == ["the runs of the soup"]
    assert "also chose the runs of the soup: metrics" in (tmp_path / "soup/README.md").read_text()
    assert metrics["val"]["accuracy"] == pytest.approx(result.soup["val_accuracy"])


def test_soup_of_runs_that_kept_their_probe_says_that_heads_alone_were_averaged(
    insects: Path, frozen: list[Path], tmp_path: Path
) -> None:
    probes = [
        train(
            insects,
            tmp_path / f"flipped-{hflip}",
            unfreeze={"name": "linear_probe"},
            optim={"lr": "auto"},
            trainer={"epochs": "auto"},
            augment={"name": "auto", "hflip": "auto"},
            probe={"enabled": "on", "hflip": hflip},
            model={"backbone": "test_resnet", "weights": "random", "batch_norm": "frozen"},
        )
        for hflip in ("on", "off")
    ]
    note = "only their heads were averaged"
    reporter = RecordingReporter()
    finetune.export(probes, tmp_path / "soup", soup="uniform", reporter=reporter)
    assert any(note in text for text in reporter.notes)
    reporter = RecordingReporter()
    finetune.export(frozen, tmp_path / "trained", soup="uniform", reporter=reporter)
    assert not any(note in text for text in reporter.notes)


def evaluate_on_val(run: Path) -> tuple[float, float]:
    metrics = finetune.evaluate(run, split="val", device="cpu").evaluation.metrics
    return metrics["accuracy"], metrics["loss"]


def test_soup_of_trained_statistics_recomputes_them(runs: Runs, tmp_path: Path) -> None:
    result = finetune.export([runs.first, runs.second], tmp_path / "soup", soup="uniform")
    assert result.soup is not None
    assert result.soup["batch_norm"] == "recomputed on training images"
    networks = [load_model(run).network for run in (runs.first, runs.second)]
    averaged = average_networks(networks).state_dict()
    found = load_model(tmp_path / "soup").network.state_dict()
    different = [name for name, value in found.items() if not torch.equal(value, averaged[name])]
    assert any(name.endswith("running_var") for name in different)
    assert not any(name.endswith("conv1.weight") for name in different)


def test_soup_of_other_start_is_refused_with_reason(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"initial weights differ .*seed 0.*seed 5"):
        finetune.export([runs.first, runs.other_seed], tmp_path / "soup", soup="greedy")
    assert not (tmp_path / "soup").exists()


def test_soup_of_hidden_layers_with_other_start_is_refused_before_averaging(
    insects: Path, tmp_path: Path
) -> None:
    train(insects, tmp_path / "base", data={"split_seed": 0})
    weights = tmp_path / "base" / "bundle"
    paths = [
        train(
            insects,
            tmp_path / f"run{seed}",
            seed=seed,
            data={"split_seed": 0},
            model={"weights": str(weights), "head": "mlp", "head_params": {"hidden": [8]}},
        )
        for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match="initial weights differ"):
        finetune.export(paths, tmp_path / "soup", soup="uniform")
    other = shutil.copytree(paths[0], tmp_path / "other")
    reporter = RecordingReporter()
    with pytest.raises(ConfigError, match=r"hidden layers.*Leave out --soup: an ensemble"):
        finetune.export([paths[0], other], tmp_path / "soup", soup="uniform", reporter=reporter)
    assert not reporter.notes, "nothing was averaged"
    check_export_of_hidden_layers(paths, tmp_path)


def check_export_of_hidden_layers(paths: list[Path], folder: Path) -> None:
    """Check that one run is refused with its bundle, and that several are exported together."""
    with pytest.raises(ConfigError, match=re.escape(f"opy the bundle {paths[0] / 'bundle'}")):
        finetune.export(paths[0], folder / "one")
    reporter = RecordingReporter()
    result = finetune.export(paths, folder / "model", reporter=reporter)
    assert result.parity is not None
    assert result.parity.max_abs_diff < 1e-5
    assert any("timm cannot read members/0, members/1" in note for note in reporter.notes)
    assert "timm reads none of the members" in (folder / "model/README.md").read_text()
    files = sorted((folder / "model").rglob("model.safetensors"))
    assert [file.parent.name for file in files] == ["0", "1"]


def test_soup_of_another_network_is_refused_with_reason(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    larger = train(insects, tmp_path / "larger", data={"image_size": 40})
    with pytest.raises(ConfigError, match="preprocessing differ"):
        finetune.export([runs.first, larger], tmp_path / "soup", soup="uniform")
    shutil.copytree(runs.second / "bundle", tmp_path / "bundle")
    with pytest.raises(ConfigError, match="needs run folders"):
        finetune.export([runs.first, tmp_path / "bundle"], tmp_path / "soup", soup="uniform")


@pytest.mark.parametrize(
    ("number", "options", "message"),
    [
        (1, {"soup": "greedy"}, "there is one"),
        (2, {"soup": "thick"}, "Choose one of greedy, uniform"),
        (2, {"soup": "greedy", "weights": "val"}, "Leave out one"),
    ],
)
def test_invalid_options_of_soups_raise_config_error(
    runs: Runs, tmp_path: Path, number: int, options: dict[str, str], message: str
) -> None:
    paths = [runs.first, runs.second][:number]
    with pytest.raises(ConfigError, match=message):
        finetune.export(paths, tmp_path / "soup", **options)  # type: ignore[arg-type]
