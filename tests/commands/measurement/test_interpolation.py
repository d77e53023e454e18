"""Tests of the weights between probe and last epoch: their choice, and the model that is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.commands.measurement.interpolation import (
    INTERPOLATION_KEY,
    Interpolation,
    ValidationScore,
    choose_position,
    describe_interpolation,
    interpolate_weights,
)
from finetune.training.checkpoint_io import PROBE_KEY
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    load_checkpoint,
    load_weights,
    read_rows,
    write_photos,
    write_weights,
)

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]


def build_score(value: float, *losses: float) -> ValidationScore:
    return ValidationScore(value, torch.tensor(losses or (value,)))


LINE = {
    0.0: build_score(0.6, 0.5, 0.7),
    0.5: build_score(0.3, 0.2, 0.4),
    1.0: build_score(0.4, 0.4, 0.4),
}


def test_interpolate_weights_lie_on_the_line_and_keep_counters() -> None:
    start = {"weight": torch.tensor([0.0, 2.0]), "num_batches_tracked": torch.tensor(3)}
    end = {"weight": torch.tensor([4.0, 2.0]), "num_batches_tracked": torch.tensor(7)}
    found = interpolate_weights(start, end, 0.25)
    assert found["weight"].tolist() == [1.0, 2.0]
    assert int(found["num_batches_tracked"]) == 7
    assert torch.equal(interpolate_weights(start, end, 0.0)["weight"], start["weight"])
    assert torch.equal(interpolate_weights(start, end, 1.0)["weight"], end["weight"])


def test_choose_position_takes_the_least_loss_or_the_greatest_metric() -> None:
    assert choose_position("calibrated_loss", LINE, None).fraction == 0.5
    assert choose_position("accuracy", LINE, None).fraction == 0.0
    tied = {0.0: build_score(0.9), 0.5: build_score(0.9), 1.0: build_score(0.8)}
    assert choose_position("accuracy", tied, None).fraction == 0.5, "the trained one of equals"


@pytest.mark.parametrize(
    ("losses", "fraction"),
    [((0.1, 0.3), None), ((0.0, 0.58), 0.5), ((0.2, 0.4), 0.5)],
    ids=["clearly better", "within the standard error", "equal"],
)
def test_choose_position_takes_an_earlier_epoch_if_clearly_better(
    losses: tuple[float, float], fraction: float | None
) -> None:
    best_epoch = build_score(sum(losses) / 2, *losses)
    result = choose_position("calibrated_loss", LINE, best_epoch)
    assert result.fraction == fraction
    assert result.best_epoch_score == best_epoch.value


def test_choose_position_compares_a_metric_of_the_user_as_it_is() -> None:
    assert choose_position("accuracy", LINE, build_score(0.61, 9.0, 9.0)).fraction is None
    assert choose_position("accuracy", LINE, build_score(0.60, 0.0, 0.0)).fraction == 0.0


def test_describe_interpolation_tells_all_scores() -> None:
    scores = {0.0: 0.6, 0.5: 0.3, 1.0: 0.4}
    text = describe_interpolation(Interpolation("calibrated_loss", scores, 0.5))
    assert "50% of the way" in text
    assert "0.6000 at 0, 0.3000 at 0.5, 0.4000 at 1" in text
    assert "the linear probe" in describe_interpolation(Interpolation("loss", scores, 0.0))
    assert "0.2000" in describe_interpolation(Interpolation("loss", scores, None, 0.2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def fit(data: Path, weights: Path, output: Path, **more: Any) -> Path:
    settings = {
        "data__path": str(data),
        "model__weights": str(weights),
        "output": str(output),
        "optim__lr": 1e-3,
    }
    return finetune.fit(create_small_config(**{**settings, **more})).run_dir


def test_interpolate_best_model_keeps_the_best_position(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run")
    result = load_checkpoint(run, "best").get(INTERPOLATION_KEY)
    assert result is not None
    assert set(result["scores"]) == {"0", "0.25", "0.5", "0.75", "1"}
    best_score = min(result["scores"].values())
    assert result["scores"][f"{result['fraction']:g}"] == best_score
    if result["fraction"] > 0:
        start, last = load_weights(run, "start"), load_weights(run, "last")
        expected = interpolate_weights(start, last, result["fraction"])
        assert_same_bits(load_weights(run, "best"), expected)
    facts = read_card_json(run / "bundle")["facts"]
    assert {**facts[INTERPOLATION_KEY], "step": 6} == result
    assert_same_bits(
        load_model(run / "bundle").network.state_dict(),
        load_model(run / "checkpoints" / "best.ckpt").network.state_dict(),
    )


def test_position_of_the_last_epoch_has_its_loss_in_the_table_of_epochs(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run", trainer__precision="bf16-mixed")
    result = load_checkpoint(run, "best").get(INTERPOLATION_KEY)
    (*_, last) = read_rows(run)
    assert result is not None
    assert result["scores"]["1"] == pytest.approx(float(last["val/calibrated_loss"]), abs=1e-5)


def test_interpolate_best_model_restores_the_probe(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    # the first epoch replaces nothing, as its loss is far higher
    run = fit(data, weights, tmp_path / "run", optim__lr=1.0, trainer__monitor="loss")
    best = load_checkpoint(run, "best")
    result = best[INTERPOLATION_KEY]
    assert result["fraction"] == 0
    assert PROBE_KEY in best
    probe_loss = float(read_rows(run)[0]["val/loss"])
    assert result["scores"]["0"] == pytest.approx(probe_loss, abs=1e-5)
    start, scale = load_weights(run, "start"), load_checkpoint(run, "start")[PROBE_KEY]
    assert scale["head_temperature"] > 1
    for name, value in best["state_dict"].items():
        factor = scale["head_temperature"] if name.startswith("classifier.network.fc.") else 1
        torch.testing.assert_close(value, start[name] * factor)


@pytest.mark.parametrize("settings", [{"optim__lr": 1.0}, {"probe__depth": 2}])
def test_weights_between_probe_and_last_epoch_fulfil_max_norm(
    settings: dict[str, Any], data: Path, weights: Path, tmp_path: Path
) -> None:
    limits = {"optim__max_norm": {"head": 0.5, "all": 2.0}}
    run = fit(data, weights, tmp_path / "run", **limits, **settings)
    norms = {}
    for name in ("start", "last", "best"):
        for key, value in load_weights(run, name).items():
            if value.ndim > 1:
                limit = 0.5 if key.endswith("network.fc.weight") else 2.0
                norms[name, key] = float(value.flatten(1).norm(dim=1).max()) / limit
    assert max(norms.values()) <= 1 + 1e-5
    assert norms["best", "classifier.network.fc.weight"] > 0.1
    free = fit(data, weights, tmp_path / "free", **settings)
    assert float(load_weights(free, "best")["classifier.network.fc.weight"].norm(dim=1).max()) > 0.5


def test_interpolate_best_model_records_that_an_earlier_epoch_is_kept(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def keep_the_epoch(metric: str, *args: object) -> Interpolation:
        calls.append(metric)
        return Interpolation(metric, {0.0: 1.0, 1.0: 1.0}, None, 0.5)

    monkeypatch.setattr(
        "finetune.commands.measurement.interpolation.choose_position", keep_the_epoch
    )
    run = fit(data, weights, tmp_path / "run")
    kept = load_checkpoint(run, "best")
    assert (kept[INTERPOLATION_KEY]["fraction"], kept[INTERPOLATION_KEY]["step"]) == (None, 6)
    (run / ".done").unlink()
    finetune.resume(run)
    assert len(calls) == 1, "the choice is not made again"
    assert_same_bits(load_weights(run, "best"), kept["state_dict"])


def test_interpolate_best_model_is_repeated_for_more_epochs(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run")
    before = load_checkpoint(run, "best")[INTERPOLATION_KEY]
    reporter = RecordingReporter()
    finetune.resume(run, assignments={"trainer.epochs": 3}, reporter=reporter)
    after = load_checkpoint(run, "best")[INTERPOLATION_KEY]
    notes = [note for note in reporter.notes if note.startswith("Best model: ")]
    assert len(notes) == 1
    assert (before["step"], after["step"]) == (6, 9)
