"""Table of layers: rows that fit a screen, and where most of the costs lie."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
from rich.console import Console
from torch import nn

from finetune.cli.main import run as run_command
from finetune.cli.render.networks.layer_table import build_layer_table, describe_layers
from tests.support.runs import write_photos, write_weights


def build_tree(*layers: tuple[str, str, int]) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "group": group,
            "output_shape": [64, 112, 112],
            "num_parameters": cost,
            "num_macs": 1_000 * cost,
            "activation_bytes": 100 * cost,
            "fixed_bytes": cost,
        }
        for name, group, cost in layers
    ]
    keys = ("num_parameters", "num_macs", "activation_bytes", "fixed_bytes")
    totals = {key: sum(int(row[key]) for row in rows) for key in keys}  # type: ignore[call-overload]
    return {
        "layers": rows,
        "totals": totals,
        "image_size": [96, 128],
        "batch_size": 8,
        "precision": "32-true",
        "phases": [
            {
                "first_epoch": 2,
                "last_epoch": 2,
                "groups": ["head"],
                "activation_bytes": 600,
                "fixed_bytes": 400,
            },
            {
                "first_epoch": 3,
                "last_epoch": 8,
                "groups": ["head", "b"],
                "activation_bytes": 10**9,
                "fixed_bytes": 0,
            },
        ],
    }


def print_table(tree: dict[str, Any]) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=80).print(build_layer_table(tree))
    return screen.getvalue().splitlines()


def test_layer_table_lists_few_layers_and_sums_blocks_of_many() -> None:
    blocks = [(f"b.{block}.conv{i}", "b", 1_000) for block in (0, 1) for i in range(5)]
    lines = print_table(build_tree(("conv1", "conv1", 5), ("bn1", "conv1", 7), *blocks))
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["conv1", "bn1", "b.0", "b.1", "(fixed)", "total"]
    assert lines[4].split() == [
        "b.0",
        "64",
        "x",
        "112",
        "x",
        "112",
        "5",
        "k",
        "5",
        "M",
        "500",
        "kB",
    ]
    assert lines[-1].split()[1:3] == ["10", "k"]


def test_layer_table_names_a_block_whose_group_has_further_layers() -> None:
    block = [(f"blocks.6.0.conv{i}", "blocks.6", 10) for i in range(8)]
    lines = print_table(build_tree(*block, ("conv_head", "blocks.6", 20)))
    assert [line.split()[0] for line in lines[2:]] == ["blocks.6", "conv_head", "(fixed)", "total"]


def test_layer_table_of_a_large_network_has_a_row_for_each_group() -> None:
    layers = [(f"b.{block}.l{i}", f"b.{block}", 3) for block in range(20) for i in range(4)]
    lines = print_table(build_tree(*layers))
    assert len(lines) == 2 + 20 + 2
    assert lines[2].split()[0] == "b.0"


def test_describe_layers_names_largest_layers_and_phases() -> None:
    lines = describe_layers(build_tree(("conv1", "conv1", 5)))
    assert lines[0].startswith("At 128 x 96 px in 32-true")
    assert "Most parameters: conv1 (100%)." in lines
    assert lines[1].startswith("(fixed): kept whatever the batch")
    assert "1.0 kB" in lines[-2] or "1 kB" in lines[-2]
    assert lines[-2].startswith("Epoch 2 trains head and keeps")
    assert "Epochs 3-8 train head to b" in lines[-1]


def test_describe_layers_ranks_the_rows_of_the_table() -> None:
    block = [
        (f"b.{name}.part{i}", "b", cost) for name, cost in (("x", 3), ("y", 2)) for i in range(8)
    ]
    lines = describe_layers(build_tree(("conv1", "conv1", 10), *block))
    assert "Most multiply-adds: b.x (48%), b.y (32%), conv1 (20%)." in lines


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    photos, weights = write_photos(tmp_path / "photos"), tmp_path / "weights.pth"
    write_weights(weights)
    return [
        "fit", str(photos), "--weights", str(weights), "--backbone", "test_resnet",
        "--image-size", "32", "--epochs", "2", "--output", str(tmp_path / "run"),
    ]  # fmt: skip


@pytest.mark.runs
def test_fit_layers_prints_80_columns_and_json(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*command, "--dry-run", "--layers"]) == 0
    output = capsys.readouterr().out
    assert all(len(line) <= 80 for line in output.splitlines())
    assert "multiply-adds" in output
    assert run_command([*command, "--dry-run", "--layers", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["plan"]["layers"]
    network = timm.create_model("test_resnet")
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert layers["layers"][0]["output_shape"] == [first.out_channels, 16, 16]
    assert run_command([*command, "--dry-run", "--json"]) == 0
    assert "layers" not in json.loads(capsys.readouterr().out)["plan"]


def test_fit_layers_without_dry_run_or_with_folds_exits_with_2(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*command, "--layers"]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert run_command([*command, "--layers", "--dry-run", "--folds", "3"]) == 2
    assert "--folds" in capsys.readouterr().err
