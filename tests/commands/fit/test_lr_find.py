"""Tests of ``fit --lr-find``: the run that it leaves, its files, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import finetune
from finetune.commands.fit import lr_find
from finetune.commands.fit.fit import fit, resume
from finetune.commands.fit.lr_find import check_lr_find, find_learning_rate
from finetune.commands.measurement.measured import read_measured
from finetune.commands.stored_run import read_stored_config
from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError, OutOfMemoryError, TrainingError
from finetune.system.run_folder import RunFolder
from finetune.training.optimization.range_test import RangeTest
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    load_weights,
    read_rows,
    write_weights,
)

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def build_config(data: Path, weights: Path | str, output: Path, **more: Any) -> Config:
    return create_small_config(
        data__path=str(data), model__weights=str(weights), output=str(output), **more
    )


@pytest.fixture
def config(animals: Path, weights: Path, tmp_path: Path) -> Config:
    return build_config(animals, weights, tmp_path / "run")


def test_find_learning_rate_stops_before_the_first_epoch_and_writes_its_files(
    config: Config,
) -> None:
    result = find_learning_rate(config)
    run = RunFolder(result.run_dir)
    assert not run.last_checkpoint_path.exists()
    assert not run.bundle_dir.exists()
    assert [row["epoch"] for row in read_rows(run.path)] == ["0"]
    measured = read_measured(run)["optim.lr"]
    assert read_stored_config(run).optim.lr == measured["value"] == result.lr_test.lr
    assert result.lr_test.is_measured
    tree = json.loads(json.dumps(result.to_json()))["lr_find"]
    assert tree["reason"] == measured["reason"]
    with run.lr_find_csv_path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss"]
    assert len(rows) == len(tree["points"]) > 10
    for row, point in zip(rows, tree["points"], strict=True):
        assert {key: float(value) for key, value in row.items()} == pytest.approx(point, rel=1e-5)
    svg = ElementTree.fromstring(run.lr_find_svg_path.read_text(encoding="utf-8"))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert "measured rate" in "".join(svg.itertext())


def test_find_learning_rate_then_resume_equals_fit(config: Config, tmp_path: Path) -> None:
    found = find_learning_rate(config)
    resumed = resume(found.run_dir)
    other = config.model_copy(update={"output": str(tmp_path / "other")})
    fitted = fit(other)
    assert_same_bits(load_weights(fitted.run_dir), load_weights(resumed.run_dir))
    assert resumed.measured == fitted.measured
    assert len(read_rows(resumed.run_dir)) == 3


def test_find_learning_rate_then_resume_with_another_rate(config: Config) -> None:
    found = find_learning_rate(config)
    resumed = resume(found.run_dir, flags={"optim.lr": ("--lr", "0.004")})
    assert read_stored_config(RunFolder(resumed.run_dir)).optim.lr == 0.004
    assert "optim.lr" not in resumed.measured
    peak = max(float(row["lr/head"]) for row in read_rows(resumed.run_dir) if row["lr/head"])
    assert peak == pytest.approx(0.004, rel=0.5)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        resume(found.run_dir, flags={"optim.lr": ("--lr", "0.002")})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_find_learning_rate_without_a_probe_starts_from_the_initial_weights(
    optimizer: str, animals: Path, tmp_path: Path
) -> None:
    config = build_config(animals, "random", tmp_path / "run", optim__name=optimizer)
    result = find_learning_rate(config)
    assert not result.lr_test.is_measured
    assert result.lr_test.lr == result.plan["phases"][0]["lr"]["head"]
    assert not RunFolder(result.run_dir).best_checkpoint_path.exists()


def test_find_learning_rate_is_the_same_for_several_processes(
    config: Config, animals: Path, weights: Path, tmp_path: Path
) -> None:
    single = find_learning_rate(config)
    double = find_learning_rate(
        build_config(animals, weights, tmp_path / "double", trainer__devices=2)
    )
    assert double.lr_test.lr == single.lr_test.lr
    # micro-batches of 4 are summed in another order than a batch of 8
    assert double.lr_test.test.losses[:20] == pytest.approx(
        single.lr_test.test.losses[:20], rel=1e-3
    )


def test_find_learning_rate_out_of_memory_halves_the_micro_batch(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def run_range_test(*_: Any, micro_batch_size: int, **__: Any) -> RangeTest:
        sizes.append(micro_batch_size)
        if len(sizes) == 1:
            raise OutOfMemoryError("Full.")
        return RangeTest((1e-3, 1e-2), (1.0, 0.9), (1.0, 0.9), False, None, None)

    monkeypatch.setattr("finetune.commands.measurement.lr_finder.run_range_test", run_range_test)
    reporter = RecordingReporter()
    result = find_learning_rate(config, reporter=reporter)
    assert sizes == [8, 4]
    assert result.lr_test.is_measured
    stored = read_stored_config(RunFolder(result.run_dir))
    assert stored.trainer.accumulate_grad_batches == 2


def test_find_learning_rate_without_a_finite_loss_fails(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.training.module.ClassificationModule.compute_loss",
        lambda self, batch, step: self(batch["image"]).sum() * float("nan"),
    )
    with pytest.raises(TrainingError, match=r"1e-7.*model\.weights"):
        find_learning_rate(config)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"unfreeze__name": "linear_probe"}, "--unfreeze linear_probe"),
        ({"resume": "auto"}, "resume=auto"),
    ],
)
def test_find_learning_rate_rejects_runs_without_a_first_epoch(
    changes: dict[str, str], setting: str, animals: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(ConfigError, match=setting):
        find_learning_rate(build_config(animals, weights, output, **changes))
    assert not output.exists()


def test_check_lr_find_rejects_several_processes_of_a_launcher(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = LaunchInfo(
        rank=0, world_size=2, local_rank=0, local_world_size=2, node_rank=0,
        master_addr="localhost", master_port=1, launcher="torchrun",
    )  # fmt: skip
    monkeypatch.setattr(lr_find, "check_launch", lambda *_: launch)
    with pytest.raises(ConfigError, match=r"torchrun.*--resume"):
        check_lr_find(config)


def test_find_learning_rate_of_the_api_takes_options(animals: Path, tmp_path: Path) -> None:
    result = finetune.find_learning_rate(
        animals,
        backbone="test_resnet",
        weights="random",
        image_size=32,
        batch_size=8,
        augment="none",
        precision="32-true",
        output=tmp_path / "run",
        config={"trainer.accelerator": "cpu"},
    )
    assert len(result.lr_test.test.rates) > 10
