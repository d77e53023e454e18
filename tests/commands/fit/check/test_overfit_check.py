"""Tests of ``fit --check`` on small networks: each hindrance is made, and absent without it."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.commands.fit.check.overfit_check import (
    CheckResult,
    check_learning,
    check_single_process,
)
from finetune.errors import ConfigError
from tests.support.runs import create_small_config, write_weights

pytestmark = pytest.mark.runs

NETWORK = """
import torch
from torch import nn

def build(num_classes):
    \"\"\"Network of which no feature reaches the head until the layer before it trains.\"\"\"
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()))
    network.add_module("body", nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU()))
    network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()))
    network.add_module("head", nn.Linear(128, num_classes))
    nn.init.zeros_(network.body[0].weight)
    nn.init.ones_(network.body[0].bias)
    return network

def build_wide(num_classes):
    \"\"\"Network that learns anything by heart.\"\"\"
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Conv2d(3, 16, 2, 2), nn.ReLU(), nn.Flatten()))
    network.add_module("head", nn.Linear(16 * 16 * 16, num_classes))
    return network

def flat_loss(logits, target):
    return nn.functional.cross_entropy(logits.detach(), target) + 0 * logits.sum()

def cut_loss(logits, target):
    return nn.functional.cross_entropy(logits.detach(), target)
"""


def write_colors(
    root: Path, *, per_class: int = 20, seed: int = 3, is_shuffled: bool = False
) -> Path:
    """Write images of two colours under noise in two class folders."""
    random = np.random.default_rng(seed)
    for number in range(2 * per_class):
        label = number % 2
        color = int(random.integers(2)) if is_shuffled else label
        pixels = random.integers(0, 150, (24, 24, 3))
        pixels[..., color] += 100
        folder = root / ("red", "green")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


def run_check(data: Path, *, seconds: float = 60, **settings: Any) -> CheckResult:
    given = {
        "data__path": str(data),
        "data__leakage": "warn",
        "optim__lr": 0.003,
        "probe__enabled": "off",
        "unfreeze__name": "all",
        "trainer__batch_size": 8,
        **settings,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return check_learning(create_small_config(**given), time_limit_seconds=seconds)


def find_rules(result: CheckResult) -> dict[str, str]:
    return {finding.rule: finding.severity for finding in result.findings}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("data") / "colors")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "check_network.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "check_network", raising=False)
    return "check_network:build"


def test_check_learns_images_and_creates_no_run_folder(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_check(colors, output=str(tmp_path / "run"))
    assert result.is_passed
    assert set(find_rules(result).values()) <= {"good", "info"}
    main = result.evidence.main
    assert main is not None
    assert (main.num_images, main.num_errors, main.lr) == (32, 0, 0.003)
    assert main.end_loss < 0.5 * main.start_loss
    assert list(tmp_path.iterdir()) == []
    tree = json.loads(json.dumps(result.to_json()))
    assert tree["is_passed"]
    assert tree["attempts"]["run"]["num_errors"] == 0
    assert "dropout" in tree["switched_off"]


def test_check_of_a_run_with_a_probe_measures_the_rate_as_it_does(
    weights: Path, tmp_path: Path
) -> None:
    data = write_colors(tmp_path / "data", per_class=40)
    result = run_check(data, model__weights=str(weights), probe__enabled="on", optim__lr=None)
    assert result.is_passed
    assert result.lr_reason == "measured on the images of the check"
    held_out = result.evidence.held_out
    assert held_out is not None
    assert held_out.p_value < 0.05


def test_check_learns_grey_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = random.integers(0, 100, (24, 24))
        pixels[:, 12 * (number % 2) : 12 * (number % 2) + 12] += 100
        folder = tmp_path / "grey" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    result = run_check(tmp_path / "grey", data__channels=1)
    assert result.is_passed, find_rules(result)


def test_check_learns_all_labels_of_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = ["path,labels"]
    for number in range(40):
        pixels = random.integers(0, 100, (24, 24, 3))
        names = [name for bit, name in enumerate(("red", "green")) if number >> bit & 1]
        for name in names:
            pixels[..., ("red", "green").index(name)] += 100
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
        rows.append(f"{number:02}.png,{'|'.join(names)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    result = run_check(tmp_path / "labels.csv")
    assert result.is_passed, find_rules(result)
    assert result.evidence.held_out is None or result.evidence.held_out.num_predictions > 8


@pytest.mark.slow
def test_check_of_a_network_without_batch_norm_passes_or_says_what_hinders(colors: Path) -> None:
    result = run_check(
        colors, seconds=10, model__backbone="vgg11", model__weights="random", data__image_size=32,
        optim__lr=None,
    )  # fmt: skip
    problems = [one for one in result.findings if one.severity == "problem"]
    assert result.is_passed or problems
    assert all(one.sentence and one.remedy and one.option != "optim.lr=auto" for one in problems)


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_check_finds_shuffled_labels(is_shuffled: bool, tmp_path: Path, network: str) -> None:
    data = write_colors(tmp_path / "data", per_class=60, is_shuffled=is_shuffled)
    settings: dict[str, Any] = {"model__backbone": f"{network}_wide", "optim__lr": 0.003}
    module = importlib.import_module("check_network")
    torch.save(module.build_wide(2).state_dict(), tmp_path / "weights.pth")
    result = run_check(data, model__weights=str(tmp_path / "weights.pth"), **settings)
    assert result.evidence.is_learned
    assert ("labels_not_followed" in find_rules(result)) == is_shuffled
    assert result.is_passed != is_shuffled


@pytest.mark.parametrize(("lr", "rule"), [(100.0, "rate_too_high"), (1e-9, "rate_too_low")])
def test_check_finds_a_wrong_rate_and_names_one_that_learns(
    lr: float, rule: str, colors: Path
) -> None:
    result = run_check(colors, optim__lr=lr)
    finding = result.findings[0]
    assert (finding.rule, finding.severity) == (rule, "problem")
    assert not result.is_passed
    option = finding.option.removeprefix("optim.lr=")
    assert run_check(colors, optim__lr=float(option)).is_passed


def test_check_finds_the_same_file_under_two_labels(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "data", per_class=40)
    shutil.copy(data / "red" / "00.png", data / "green" / "copy.png")
    result = run_check(data)
    assert find_rules(result)["contradicting_labels"] == "problem"
    assert "red/00.png" in result.findings[0].sentence
    assert "green/copy.png" in result.findings[0].sentence
    assert result.evidence.is_learned  # the others
    assert not result.is_passed


def test_check_finds_the_same_pixels_in_another_format(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "data")
    with Image.open(data / "red" / "00.png") as image:
        image.save(data / "green" / "copy.bmp")
    assert find_rules(run_check(data))["contradicting_labels"] == "problem"


def test_check_finds_black_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in [f"{folder}/{number}.png" for folder in ("a", "b") for number in range(12)]:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24 + len(name), 24)).save(data / name)
    result = run_check(data, data__leakage="ignore")
    assert find_rules(result) == {"equal_inputs": "problem"}
    assert not result.is_passed


def test_check_finds_a_normalization_in_another_unit(colors: Path, weights: Path) -> None:
    cfg = {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}
    result = run_check(colors, model__weights=str(weights), model__pretrained_cfg=cfg)
    assert find_rules(result)["normalization"] == "problem"
    assert not result.is_passed


@pytest.mark.parametrize("loss", ["flat_loss", "cut_loss"])
def test_check_finds_a_loss_without_a_gradient(loss: str, colors: Path, network: str) -> None:
    result = run_check(colors, loss__name=f"{network.partition(':')[0]}:{loss}")
    assert find_rules(result) == {"no_gradient": "problem"}


def test_check_finds_too_many_frozen_layers(colors: Path, network: str) -> None:
    settings: dict[str, Any] = {"model__backbone": network, "optim__lr": 0.01}
    frozen = run_check(
        colors, **settings, unfreeze__name="milestones", unfreeze__params={"depths": {0: 1}}
    )
    assert find_rules(frozen) == {"frozen_too_deep": "problem"}
    assert frozen.findings[0].option == "unfreeze.name=all"
    assert run_check(colors, **settings).is_passed


def test_check_reports_what_a_time_limit_left(colors: Path) -> None:
    config = create_small_config(data__path=str(colors), optim__lr=1e-4, probe__enabled="off")
    result = check_learning(config, time_limit_seconds=0)
    assert not result.is_passed
    assert "time limit" in result.findings[0].sentence


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"resume": "auto"}, "resume=auto"), ({"cross_validation__num_folds": 3}, "num_folds=3")],
)
def test_check_rejects_runs_that_it_cannot_stand_for(
    changes: dict[str, Any], setting: str, colors: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--check.*{setting}"):
        check_single_process(create_small_config(data__path=str(colors), **changes))
