"""Reduction on a plateau compared with torch's scheduler, on resume and on two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from finetune.commands.fit.fit import fit as run_fit
from finetune.commands.fit.fit import resume
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.training.schedules.factor_scheduler import FactorScheduler
from finetune.training.schedules.plateau import PlateauFactor, PlateauSettings
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    create_small_training,
    load_checkpoint,
    load_weights,
    read_rows,
)

METRICS = [0.9, 0.8, 0.81, 0.82, 0.79, 0.79, 0.79, 0.79, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4]


def build_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)


@pytest.mark.parametrize("monitor", ["val/loss", "val/calibrated_loss", "val/accuracy"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"patience": 0, "factor": 0.5},
        {"patience": 1, "cooldown": 2, "min_factor": 0.02},
        {"threshold": 0.2, "factor": 0.3},
    ],
)
def test_plateau_equals_torch_scheduler_epoch_by_epoch(
    monitor: str, params: dict[str, Any]
) -> None:
    mode = "min" if monitor.endswith("loss") else "max"
    reference = build_optimizer()
    own = {key: value for key, value in params.items() if key != "min_factor"}
    scheduler = ReduceLROnPlateau(
        reference,
        mode=mode,  # type: ignore[arg-type]
        min_lr=0.5 * params.get("min_factor", 0.0),
        **{"factor": 0.1, "patience": 2, **own},
    )
    optimizer = build_optimizer()
    factor = PlateauFactor(PlateauSettings(monitor, **params))
    schedule = FactorScheduler(optimizer, lambda step: 1.0, plateau=factor)
    reductions = 0
    for metric in METRICS:
        for _ in range(3):  # the steps of an epoch
            optimizer.step()
            schedule.step()
        before = optimizer.param_groups[0]["lr"]
        schedule.update_plateau(metric)
        scheduler.step(metric)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])
        reductions += optimizer.param_groups[0]["lr"] < before
    assert reductions


def test_plateau_multiplies_the_warm_up() -> None:
    optimizer = build_optimizer()
    factor = PlateauFactor(PlateauSettings("val/loss", factor=0.1, patience=0))
    schedule = FactorScheduler(optimizer, lambda step: min(1.0, (step + 1) / 4), plateau=factor)
    factor.update(1.0)
    schedule.update_plateau(2.0)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05])


def test_state_of_another_metric_keeps_the_factor_alone() -> None:
    first = PlateauFactor(PlateauSettings("val/loss", patience=0))
    for metric in (1.0, 2.0):
        first.update(metric)
    assert first.value == pytest.approx(0.1)
    other = PlateauFactor(PlateauSettings("val/accuracy", patience=0))
    other.load_state_dict(first.state_dict())
    assert other.value == pytest.approx(0.1)
    other.update(0.5)  # better than nothing, though worse than a loss of 1.0 if that were kept
    assert other.value == pytest.approx(0.1)


def build_run_config(animals: Path, folder: Path, epochs: int) -> Config:
    """Return the config of a run that reduces its rate after epochs 3 and 5 whatever it learns."""
    return create_small_config(
        data__path=str(animals),
        output=str(folder),
        unfreeze__name="all",
        optim__name="sgd",
        lr_schedule__name="plateau",
        # no epoch improves the first by 90%
        lr_schedule__params={"patience": 1, "factor": 0.5, "threshold": 0.9},
        lr_schedule__warmup_fraction=0.0,
        trainer__epochs=epochs,
    )


@pytest.mark.runs
@pytest.mark.parametrize("stop", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_run_reduces_at_the_same_epoch_to_the_same_bits(
    stop: int, animals: Path, tmp_path: Path
) -> None:
    run_fit(build_run_config(animals, tmp_path / "whole", 5))
    run_fit(build_run_config(animals, tmp_path / "resumed", stop))
    resume(tmp_path / "resumed", assignments={"trainer.epochs": 5})
    rates = [float(row["lr/head"]) for row in read_rows(tmp_path / "whole")]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005])
    assert [float(row["lr/head"]) for row in read_rows(tmp_path / "resumed")] == rates
    assert_same_bits(load_weights(tmp_path / "whole"), load_weights(tmp_path / "resumed"))
    states = [load_checkpoint(tmp_path / name)["lr_schedulers"][0] for name in ("whole", "resumed")]
    assert states[0] == states[1]
    assert states[0]["plateau"]["factor"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("plateau", {"factor": 2}, r"factor=2 is not between 0 and 1"),
        ("plateau", {"patience": 1.5}, r"patience=1\.5 is not a whole number"),
        ("plateau", {"patience": "abc"}, r"patience=abc, expected a"),
        ("plateau", {"patience": None}, r"patience=\w+, expected a"),
        ("plateau", {"factor": "abc"}, r"factor=abc, expected a number"),
        ("plateau", {"gamma": 0.1}, r"lr_schedule\.params: unknown parameter 'gamma'"),
        ("step", {"gamma": 0}, r"lr_schedule\.name=step .*gamma=0 "),
        ("step", {"every": 0}, r"every=0 "),
        ("step", {"num_epochs": 3}, r"'num_epochs' comes from the run"),
        ("exponential", {"gamma": "x"}, r"lr_schedule\.name=exponential .*gamma=x is of a wrong"),
        ("inverse_time", {"decay": -1}, r"decay=-1 "),
        ("one_cycle", {"pct_start": 1}, r"pct_start=1 "),
        ("one_cycle", {"max_momentum": 1}, r"max_momentum=1 "),
        ("one_cycle", {"base_momentum": 1.2, "cycle_momentum": False}, r"base_momentum=1\.2 "),
        ("one_cycle", {"anneal_strategy": "cosine"}, r"anneal_strategy='cosine' "),
        ("cosine", {"gamma": 0.1}, r"lr_schedule\.params: unknown parameter 'gamma'"),
        ("cosine", {"final_factor": 0.1}, r"'final_factor' comes from lr_schedule\.final_factor"),
    ],
)
def test_invalid_schedule_parameters_raise_config_error(
    name: str, params: dict[str, Any], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_small_training(animals, lr_schedule__name=name, lr_schedule__params=params,
                              optim__name="sgd", trainer__early_stopping_patience=9)  # fmt: skip


def test_early_stopping_after_a_probe_leaves_an_epoch_at_the_lowered_rate(animals: Path) -> None:
    settings: dict[str, Any] = {
        "lr_schedule__name": "plateau", "lr_schedule__params": {"patience": 0},
        "trainer__early_stopping_patience": 2,
    }  # fmt: skip
    create_small_training(animals, **settings, probe__enabled="off")
    with pytest.raises(ConfigError, match="three after a linear probe"):
        create_small_training(animals, **settings, probe__enabled="on")
    settings["trainer__early_stopping_patience"] = 3
    create_small_training(animals, **settings, probe__enabled="on")


def test_one_cycle_sets_the_momentum_of_each_step(animals: Path) -> None:
    for name, key in (("sgd", "momentum"), ("adamw", "betas")):
        training = create_small_training(
            animals, lr_schedule__name="one_cycle", optim__name=name, trainer__epochs=10
        )
        assert training.config.lr_schedule.warmup_fraction == 0
        configured: Any = training.module.configure_optimizers()
        optimizer = configured["optimizer"]
        scheduler = configured["lr_scheduler"]["scheduler"]
        momenta = []
        for _ in range(30):
            value = optimizer.param_groups[0][key]
            momenta.append(value if key == "momentum" else value[0])
            optimizer.step()
            scheduler.step()
        assert momenta[0] == momenta[-1] == pytest.approx(0.95)
        assert min(momenta) == momenta[8] == pytest.approx(0.85)  # 0.3 * 30 - 1
        if key == "betas":
            assert optimizer.param_groups[0]["betas"][1] == 0.999


@pytest.mark.parametrize(
    "settings",
    [
        {"optim__name": "sgd", "lr_schedule__params": {"cycle_momentum": False}},
        {"optim__name": "sgd", "optim__momentum": 0.0},
        {"optim__name": "rmsprop"},
        {"optim__name": "adagrad"},
    ],
)
def test_one_cycle_leaves_the_momentum_where_it_is_off_or_there_is_none(
    settings: dict[str, Any], animals: Path
) -> None:
    training = create_small_training(animals, lr_schedule__name="one_cycle", **settings)
    assert training.module.recipe.momentum_lambda is None
