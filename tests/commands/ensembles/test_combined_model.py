"""Several models together: evaluate, predict and export, weights, and images trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.cli.render.evaluation_table import build_remarks
from finetune.data.manifest import read_manifest
from finetune.errors import ConfigError, ModelError
from finetune.evaluation.mixture_weights import compute_mixture_loss, fit_mixture_weights
from finetune.inference.predictor import Predictor
from finetune.types import Split
from tests.commands.ensembles.conftest import Runs, train
from tests.support.helpers import RecordingReporter, write_images


def predict(bundle: ModelBundle, files: list[Path]) -> torch.Tensor:
    return Predictor(bundle, device="cpu").predict_proba(files)


def list_split(run: Path, root: Path, split: Split) -> tuple[list[Path], list[int]]:
    """Return the files and labels of a split of a run."""
    manifest = read_manifest(run / "manifest.csv", root=root)
    samples = manifest.get_samples(split)
    return manifest.resolve_paths(samples), manifest.encode_labels(samples)


def test_evaluate_runs_is_evaluation_of_mean_probabilities(runs: Runs, insects: Path) -> None:
    files, labels = list_split(runs.first, insects, Split.TEST)
    members = [load_model(run) for run in (runs.first, runs.second)]
    mean = torch.stack([predict(member, files) for member in members]).mean(0)
    result = finetune.evaluate([runs.first, runs.second], device="cpu")
    assert result.split == "test"
    expected = float(-np.log(mean[range(len(labels)), labels].numpy()).mean())
    assert result.evaluation.metrics["loss"] == pytest.approx(expected, abs=1e-6)
    alone = finetune.evaluate(runs.first, device="cpu").evaluation.metrics["loss"]
    assert result.evaluation.metrics["loss"] != pytest.approx(alone, abs=1e-6)
    tree = json.loads(json.dumps(result.to_json()))
    assert [member["weight"] for member in tree["members"]] == [0.5, 0.5]
    assert [Path(member["model"]).parent for member in tree["members"]] == [
        runs.first,
        runs.second,
    ]
    assert tree["num_training_images"] == 0


def test_predict_runs_is_mean_probability(runs: Runs, insects: Path) -> None:
    folder = insects / "fly"
    files = sorted(folder.iterdir())
    members = [load_model(runs.first), load_model(runs.other_seed / "checkpoints" / "best.ckpt")]
    mean = torch.stack([predict(member, files) for member in members]).mean(0)
    paths = [runs.first, runs.other_seed / "checkpoints" / "best.ckpt"]
    result = finetune.predict(paths, folder, device="cpu", top_k=3)
    by_path = {
        p.path: dict(zip(p.labels, p.probabilities, strict=True)) for p in result.predictions
    }
    classes = members[0].card.classes
    for file, row in zip(files, mean, strict=True):
        found = by_path[str(file)]
        assert [found[name] for name in classes] == pytest.approx(row.tolist(), abs=1e-6)


@pytest.mark.parametrize("tta", ["hflip", "crops", "crops10", "sizes"])
def test_evaluate_views_of_ensemble_and_other_size(runs: Runs, tta: str) -> None:
    paths = [runs.first, runs.second]
    result = finetune.evaluate(paths, device="cpu", tta=tta, image_size=40)
    tree = result.to_json()
    assert (tree["tta"], tree["views"], tree["image_size"]) == (True, tta, 40)
    losses = {
        result.evaluation.metrics["loss"],
        finetune.evaluate(paths, device="cpu", image_size=40).evaluation.metrics["loss"],
        finetune.evaluate(paths, device="cpu", tta=tta).evaluation.metrics["loss"],
    }
    assert len(losses) == 3


def test_target_prior_adjusts_each_member_from_its_own(runs: Runs, insects: Path) -> None:
    files, _ = list_split(runs.first, insects, Split.TEST)
    paths = [runs.first, runs.second]
    result = finetune.predict(paths, files[0], device="cpu", prior="uniform", top_k=3)
    assert result.prior["adjusted"]
    expected = np.zeros(3)
    for path in paths:
        bundle = load_model(path)
        assert bundle.card.priors is not None
        probabilities = predict(bundle, files[:1])[0].double().numpy()
        ratio = probabilities / np.array(bundle.card.priors.model)
        expected += ratio / ratio.sum() / 2
    (prediction,) = result.predictions
    found = dict(zip(prediction.labels, prediction.probabilities, strict=True))
    classes = load_model(runs.first).card.classes
    assert [found[name] for name in classes] == pytest.approx(expected.tolist(), abs=1e-5)


def test_evaluate_refuses_images_that_a_member_was_trained_on(runs: Runs) -> None:
    pattern = f"of {runs.first} .* training images? of {runs.other_seed} .*same split"
    with pytest.raises(ConfigError, match=pattern):
        finetune.evaluate([runs.first, runs.other_seed], device="cpu")


def test_evaluate_other_data_warns_of_each_run_that_was_trained_on_them(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    files, _ = list_split(runs.other_seed, insects, Split.TRAIN)
    files = files[::3]  # with most images of a run, the folder would be that of the run
    for number, file in enumerate(files):
        target = tmp_path / "copy" / file.parent.name / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    reporter = RecordingReporter()
    paths = [runs.first, runs.other_seed]
    result = finetune.evaluate(paths, tmp_path / "copy", device="cpu", reporter=reporter)
    assert result.num_training_images == len(files)
    warning = next(w for w in reporter.warnings if str(runs.other_seed) in w)
    assert f"{len(files)} of {len(files)}" in warning
    assert any(str(runs.first) in w and "training images" in w for w in reporter.warnings)


@pytest.mark.runs
def test_evaluate_bundle_outside_of_runs_says_that_its_images_are_unknown(
    runs: Runs, tmp_path: Path
) -> None:
    bundle = load_model(runs.second)
    save_bundle(bundle.network, bundle.card, tmp_path / "bundle")
    reporter = RecordingReporter()
    finetune.evaluate([runs.first, tmp_path / "bundle"], device="cpu", reporter=reporter)
    assert any(str(tmp_path / "bundle") in warning for warning in reporter.warnings)


def test_weights_of_shared_validation_images_minimise_log_loss(runs: Runs, insects: Path) -> None:
    files, labels = list_split(runs.first, insects, Split.VAL)
    members = [load_model(run) for run in (runs.first, runs.second)]
    columns = np.stack(
        [predict(m, files)[range(len(labels)), labels].double().numpy() for m in members], axis=1
    )
    expected = fit_mixture_weights(columns)
    grid = [compute_mixture_loss(columns, np.array([w, 1 - w])) for w in np.linspace(0, 1, 101)]
    assert compute_mixture_loss(columns, expected) <= min(grid) + 1e-9
    reporter = RecordingReporter()
    result = finetune.evaluate(
        [runs.first, runs.second], device="cpu", weights="val", reporter=reporter
    )
    found = [weight for _, weight in result.members if weight]
    assert found == pytest.approx([w for w in expected if w >= 1e-3], abs=2e-3)
    assert any(f"{len(files)} validation images" in note for note in reporter.notes)
    assert result.validation_choices == ()  # of test images


def test_metrics_of_images_that_chose_the_weights_are_remarked(runs: Runs) -> None:
    paths = [runs.first, runs.second]
    equal, fitted = (
        finetune.evaluate(paths, device="cpu", split="val", weights=weights).to_json()
        for weights in ("equal", "val")
    )
    assert equal["validation_choices"] == []
    assert fitted["validation_choices"] == ["the weights of the models"]
    remark = "The validation images also chose the weights of the models: metrics of"
    assert remark in " ".join(build_remarks(fitted))
    assert remark not in " ".join(build_remarks(equal))


def test_model_with_weight_0_is_listed_and_the_kept_one_named(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.commands.ensembles.combined_model.fit_mixture_weights",
        lambda columns: np.array([0.0, 1.0]),
    )
    result = finetune.evaluate([runs.first, runs.second], device="cpu", weights="val")
    assert result.model == runs.second
    assert [weight for _, weight in result.members] == [1.0, 0.0]
    assert Path(result.members[0][0]).is_relative_to(runs.second)
    assert result.members[1][0] == str(runs.first)
    expected = finetune.evaluate(runs.second, device="cpu").evaluation
    assert result.evaluation.metrics == expected.metrics


def test_weights_of_runs_with_other_splits_are_refused(runs: Runs, insects: Path) -> None:
    with pytest.raises(ConfigError, match=r"val images? of .*first .* training image") as error:
        finetune.predict([runs.first, runs.other_seed], insects, device="cpu", weights="val")
    assert str(runs.other_seed) in str(error.value)


def test_weights_of_model_without_run_are_refused(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    bundle = load_model(runs.second)
    save_bundle(bundle.network, bundle.card, tmp_path / "bundle")
    paths = [runs.first, tmp_path / "bundle"]
    with pytest.raises(ConfigError, match="does not lie in a run folder"):
        finetune.predict(paths, insects, device="cpu", weights="val")


@pytest.mark.parametrize(
    ("weights", "message"), [("val", "there is one"), ("best", "unknown. Choose one of equal, val")]
)
def test_invalid_weights_raise_config_error(
    runs: Runs, insects: Path, weights: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune.predict(runs.first, insects, device="cpu", weights=weights)


def test_model_that_is_given_twice_raises_config_error(runs: Runs, insects: Path) -> None:
    for other in (runs.first / ".", runs.first / "bundle"):
        with pytest.raises(ConfigError, match="given twice"):
            finetune.predict([runs.first, other], insects, device="cpu")


@pytest.mark.runs
def test_models_of_other_classes_raise_model_error(
    runs: Runs, tmp_path: Path, insects: Path
) -> None:
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(8)]
    run = train(write_images(tmp_path / "pets", *names), tmp_path / "run")
    with pytest.raises(ModelError, match=r"same classes.*'cat', 'dog'"):
        finetune.predict([runs.first, run], insects, device="cpu")


@pytest.mark.runs
def test_export_of_runs_is_one_model_with_metrics_and_parity(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    paths = [runs.first, runs.second]
    result = finetune.export(paths, tmp_path / "model")
    assert result.parity is not None
    assert result.parity.max_abs_diff < 1e-3
    assert result.to_json()["format"] == "ensemble"
    facts = load_model(tmp_path / "model").card.facts
    for split in ("val", "test"):
        expected = finetune.evaluate(paths, device="cpu", split=split).evaluation.metrics
        assert facts["metrics"][split] == pytest.approx(expected)
    evaluated = finetune.evaluate(tmp_path / "model", insects, device="cpu")
    assert evaluated.evaluation.num_images == 38
    predicted = finetune.predict(tmp_path / "model", insects, device="cpu")
    expected_rows = finetune.predict(paths, insects, device="cpu")
    for one, other in zip(predicted.predictions, expected_rows.predictions, strict=True):
        assert one.path == other.path
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_unreadable_file_is_left_out_of_prediction_of_ensemble(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    (tmp_path / "good.png").write_bytes(next((insects / "fly").iterdir()).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    result = finetune.predict(
        [runs.first, runs.second], tmp_path, device="cpu", tta="crops", output=tmp_path / "p.csv"
    )
    assert len(result.predictions) == len(result.rejected) == 1
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {Path(row["path"]).name: bool(row["error"]) for row in rows} == {
        "good.png": False,
        "broken.png": True,
    }


@pytest.mark.runs
def test_size_that_a_network_does_not_accept_is_refused_by_name(
    tmp_path: Path, insects: Path
) -> None:
    run = train(insects, tmp_path / "vit3", model={"backbone": "test_vit3", "weights": "random"})
    for options in ({"image_size": 48}, {"tta": "sizes"}):
        with pytest.raises(ConfigError, match=r"cannot apply to test_vit3.* 32 px"):
            finetune.predict(run, insects, device="cpu", **options)
    assert finetune.predict(run, insects, device="cpu", image_size=32).predictions


@pytest.mark.runs
def test_flips_are_refused_for_member_without_flipped_images(
    runs: Runs, insects: Path, tmp_path: Path
) -> None:
    run = train(insects, tmp_path / "run", augment={"name": "none", "hflip": "off"})
    for tta in ("hflip", "crops10"):
        with pytest.raises(ConfigError, match=f"--tta {tta} cannot apply"):
            finetune.predict([runs.first, run], insects, device="cpu", tta=tta)
    assert finetune.predict([runs.first, run], insects, device="cpu", tta="crops").predictions
