"""Tests of ``finetune.commands.target_prior``, through predict, evaluate and export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import finetune
from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.model_card import read_card_json
from finetune.errors import ConfigError
from finetune.evaluation.priors import Priors
from finetune.inference.predictor import Predictor
from finetune.models.backbone import create_network
from finetune.training.checkpoint_io import PROBE_KEY
from finetune.types import Split
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    build_photo_manifest,
    create_small_config,
    load_checkpoint,
    write_photos,
    write_weights,
)

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def model(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with a temperature and a non-uniform prior; never change it."""
    bundle = load_model(trained.run_dir)
    model = (0.6, 0.3, 0.1)
    card = replace(bundle.card, temperature=0.6, priors=Priors((0.7, 0.2, 0.1), model))
    fearlier = tmp_path_factory.mktemp("priors") / "bundle"
    save_bundle(bundle.network, card, fearlier)
    return fearlier


@pytest.fixture
def prior_file(tmp_path: Path) -> Path:
    """Return a prior file in which the second class has prior 0."""
    file = tmp_path / "prior_file.json"
    file.write_text(json.dumps(dict(zip(CLASSES, (1, 0, 3), strict=True))), encoding="utf-8")
    return file


def predict_probabilities(model: Path, images: Path, **more: Any) -> Array:
    """Return the class probabilities of ``predict``, in class order, shape (N, K)."""
    result = finetune.predict(model, images, top_k=3, device="cpu", **more)
    rows = [dict(zip(p.labels, p.probabilities, strict=True)) for p in result.predictions]
    return np.array([[row[name] for name in CLASSES] for row in rows])


def adjust_probabilities(probabilities: Array, target: tuple[float, ...]) -> Array:
    """Return probabilities for the prior (0.6, 0.3, 0.1), adjusted to ``target``."""
    ratio = probabilities * np.array(target) / np.array((0.6, 0.3, 0.1))
    return np.asarray(ratio / ratio.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("prior", "target"),
    [("uniform", (1 / 3, 1 / 3, 1 / 3)), ("train", (0.7, 0.2, 0.1)), ("FILE", (0.25, 0.0, 0.75))],
)
def test_prior_predict_evaluate_and_export_agree(
    model: Path,
    insects: Path,
    tmp_path: Path,
    prior_file: Path,
    prior: str,
    target: tuple[float, ...],
) -> None:
    prior = str(prior_file) if prior == "FILE" else prior
    expected = adjust_probabilities(predict_probabilities(model, insects), target)
    found = predict_probabilities(model, insects, prior=prior)
    np.testing.assert_allclose(found, expected, atol=1e-6)

    evaluated = finetune.evaluate(model, insects, device="cpu", prior=prior).to_json()
    true = [CLASSES.index(file.parent.name) for file in sorted(insects.rglob("*.png"))]
    assert evaluated["metrics"]["accuracy"] == pytest.approx((expected.argmax(1) == true).mean())
    assert evaluated["prior"]["class_prior"] == pytest.approx(
        dict(zip(CLASSES, target, strict=True))
    )
    assert (evaluated["prior"]["requested"], evaluated["prior"]["adjusted"]) == (prior, True)
    json.dumps(evaluated)

    recorder = RecordingReporter()
    result = finetune.export(
        model, tmp_path / "model", images=insects, prior=prior, reporter=recorder
    )
    assert recorder.warnings == []
    assert any("fly" in note for note in recorder.notes) is (0 in target)
    assert result.parity is not None  # timm alone against the adjusted probabilities
    assert result.parity.num_same_top1 == 38
    card = load_model(tmp_path / "model").card
    assert card.priors == Priors((0.7, 0.2, 0.1), pytest.approx(target), None)  # type: ignore[arg-type]
    assert card.temperature == 1
    assert card.facts["prior_in_head"] == pytest.approx(target)
    np.testing.assert_allclose(
        predict_probabilities(tmp_path / "model", insects), expected, atol=1e-5
    )
    of_export = finetune.evaluate(tmp_path / "model", insects, device="cpu").to_json()
    assert of_export["prior"]["adjusted"] is False
    assert "folded" in of_export["prior"]["target_prior"]
    assert of_export["prior"]["class_prior"] == pytest.approx(evaluated["prior"]["class_prior"])
    assert of_export["metrics"]["accuracy"] == evaluated["metrics"]["accuracy"]


def test_prior_of_exported_model_can_be_changed_again(
    model: Path, insects: Path, tmp_path: Path
) -> None:
    finetune.export(model, tmp_path / "one", images=insects, prior="uniform")
    expected = adjust_probabilities(predict_probabilities(model, insects), (0.7, 0.2, 0.1))
    found = predict_probabilities(tmp_path / "one", insects, prior="train")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    finetune.export(tmp_path / "one", tmp_path / "two", images=insects, prior="train")
    np.testing.assert_allclose(
        predict_probabilities(tmp_path / "two", insects), expected, atol=1e-5
    )
    finetune.export(tmp_path / "one", tmp_path / "same", images=insects, prior="model")
    first, same = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "same"))
    assert first == same, "the shift is folded in once"


def test_prior_zero_in_exported_model_cannot_be_raised(
    model: Path, insects: Path, tmp_path: Path, prior_file: Path
) -> None:
    finetune.export(model, tmp_path / "one", images=insects, prior=str(prior_file))
    with pytest.raises(ConfigError, match=r"--prior uniform .*\bfly\b"):
        finetune.predict(tmp_path / "one", insects, device="cpu", prior="uniform")
    again = predict_probabilities(tmp_path / "one", insects, prior=str(prior_file))
    np.testing.assert_allclose(again, predict_probabilities(tmp_path / "one", insects), atol=1e-6)
    assert (again[:, 1] == 0).all()
    # the backbone weights are still finite and load
    network = create_network("resnet10t", num_classes=3, weights=str(tmp_path / "one"))
    assert network.report.loaded_fraction == 1
    assert all(bool(tensor.isfinite().all()) for tensor in network.module.state_dict().values())


def test_prior_without_linear_head_stays_in_card(insects: Path, tmp_path: Path) -> None:
    from finetune.bundle.model_card import ModelCard
    from tests.support.networks import randomise

    name = "deit_tiny_distilled_patch16_224"
    created = create_network(name, num_classes=2, weights="random", image_size=32)
    randomise(created.module)
    card = ModelCard(
        name, created.model_args, ("a", "b"), created.spec, priors=Priors((0.9, 0.1), (0.9, 0.1))
    )
    save_bundle(created.module, card, tmp_path / "bundle")
    recorder = RecordingReporter()
    result = finetune.export(
        tmp_path / "bundle",
        tmp_path / "model",
        images=insects / "fly",
        prior="uniform",
        reporter=recorder,
    )
    assert result.parity is not None
    assert "log(target prior / model prior)" in recorder.warnings[0]
    exported_priors = load_model(tmp_path / "model").card.priors
    assert exported_priors == Priors((0.9, 0.1), (0.9, 0.1), (0.5, 0.5))


def test_prior_of_card_holds_unless_requested(model: Path, insects: Path, tmp_path: Path) -> None:
    bundle = load_model(model)
    priors = Priors((0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (1 / 3,) * 3)
    save_bundle(bundle.network, replace(bundle.card, priors=priors), tmp_path / "stored")
    own, balanced = (
        predict_probabilities(model, insects, prior=prior) for prior in (None, "uniform")
    )
    stored = tmp_path / "stored"
    assert (predict_probabilities(stored, insects) == balanced).all()
    assert (predict_probabilities(stored, insects, prior="model") == own).all()
    assert finetune.predict(stored, insects, device="cpu").prior["adjusted"] is True
    finetune.export(stored, tmp_path / "exported", images=insects)
    np.testing.assert_allclose(
        predict_probabilities(tmp_path / "exported", insects), balanced, atol=1e-5
    )


def test_prior_with_tta_shifts_logits_of_each_view(
    flipped_bundle: Path, insects: Path, tmp_path: Path
) -> None:
    bundle = load_model(flipped_bundle)
    model, third = (0.6, 0.3, 0.1), 1 / 3
    save_bundle(
        bundle.network,
        replace(bundle.card, priors=Priors(model, model)),
        tmp_path / "bundle",
    )
    files = sorted(insects.rglob("*.png"))
    logits = Predictor(bundle, device="cpu", tta=True).predict_logits(files).double().numpy()
    views = np.exp(logits) * third / np.array(model)
    expected = (views / views.sum(2, keepdims=True)).mean(1)
    found = predict_probabilities(tmp_path / "bundle", insects, prior="uniform", tta=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prior_of_checkpoint_equals_run(trained: FitResult, insects: Path) -> None:
    best = trained.run_dir / "checkpoints" / "best.ckpt"
    assert load_model(best).card.priors == load_model(trained.run_dir).card.priors is not None
    found = predict_probabilities(best, insects, prior="uniform")
    assert (found == predict_probabilities(trained.run_dir, insects, prior="uniform")).all()


def test_prior_of_earlier_release_is_unknown(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    earlier = Path(shutil.copytree(trained.run_dir / "bundle", tmp_path / "earlier"))
    tree = read_card_json(earlier)
    del tree["priors"], tree["digests"]
    (earlier / "finetune.json").write_text(json.dumps(tree), encoding="utf-8")
    expected = predict_probabilities(trained.run_dir, insects)
    assert (predict_probabilities(earlier, insects) == expected).all()
    result = finetune.evaluate(earlier, insects, device="cpu").to_json()["prior"]
    assert "unknown" in result["target_prior"]
    assert result["class_prior"] is None
    message = f"--prior uniform .*{earlier}"
    for verb in (finetune.evaluate, finetune.predict):
        with pytest.raises(ConfigError, match=message):
            verb(earlier, insects, device="cpu", prior="uniform")
    with pytest.raises(ConfigError, match=message):
        finetune.export(earlier, tmp_path / "model", prior="uniform")
    assert not (tmp_path / "model").exists()


def test_prior_target_of_run_is_used_in_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace the priors of a run by a target as ``post_hoc`` sets it, for a skewed model prior."""
    module = "finetune.builders.model_prior"
    photos = write_photos(tmp_path / "photos")
    model, equal = (0.8, 0.1, 0.1), (1 / 3,) * 3
    priors = Priors(model, model, equal)
    monkeypatch.setattr(f"{module}.compute_run_priors", lambda *_, **__: priors)
    monkeypatch.setattr(f"{module}.build_model_prior_schedule", lambda *_, **__: lambda _: model)
    config = {"data__path": str(photos), "calibration__enabled": "on", "trainer__epochs": 1}
    result = finetune.fit(create_small_config(output=str(tmp_path / "run"), **config))
    card = load_model(result.run_dir).card
    assert card.priors == priors
    assert load_model(result.run_dir / "checkpoints" / "best.ckpt").card.priors == card.priors
    assert result.evaluations["val"]["prior"]["adjusted"] is True
    evaluated = finetune.evaluate(result.run_dir, device="cpu")
    assert dict(evaluated.evaluation.metrics) == dict(result.metrics["val"])
    manifest = build_photo_manifest(photos)
    held_out = manifest.get_samples(Split.VAL)
    plain = replace(card, priors=None)
    predictor = Predictor(replace(load_model(result.run_dir), card=plain), device="cpu")
    own = predictor.predict_proba(manifest.resolve_paths(held_out)).double().numpy()
    ratio = own / np.array(model)
    adjusted = ratio / ratio.sum(1, keepdims=True)
    labels = torch.tensor(manifest.encode_labels(held_out))
    loss = -np.log(adjusted[np.arange(15), labels.numpy()]).mean()
    assert result.metrics["val"]["loss"] == pytest.approx(loss, abs=1e-5)
    again = finetune.resume(result.run_dir)
    assert again.metrics == result.metrics
    assert again.evaluations == result.evaluations


@pytest.mark.parametrize("probe", ["on", "off"])
def test_model_of_a_run_with_hinge_has_the_loss_of_its_weights(probe: str, tmp_path: Path) -> None:
    # with such a rate, no epoch is better than the probe
    photos, weights = write_photos(tmp_path / "photos"), write_weights(tmp_path / "weights.pth")
    config = create_small_config(
        data__path=str(photos), model__weights=str(weights), output=str(tmp_path / "run"),
        loss__name="hinge", probe__enabled=probe, optim__lr=1.0,
    )  # fmt: skip
    run = finetune.fit(config)
    card = load_model(run.run_dir).card
    assert (PROBE_KEY in load_checkpoint(run.run_dir, "best")) is (probe == "on")
    assert card.facts["loss"] == ("cross_entropy" if probe == "on" else "hinge")
    prior = run.evaluations["val"]["prior"]["class_prior"]
    assert (prior is None) is (probe == "off")


@pytest.mark.parametrize(("loss", "imbalance"), [("hinge", "none"), ("squared_hinge", "none")])
def test_prior_of_a_model_trained_with_hinge_raises_config_error(
    loss: str, imbalance: str, model: Path, tmp_path: Path, animals: Path
) -> None:
    bundle = load_model(model)
    facts = {**bundle.card.facts, "loss": loss, "imbalance": imbalance}
    save_bundle(bundle.network, replace(bundle.card, facts=facts), tmp_path / "scores")
    with pytest.raises(ConfigError, match=rf"--prior uniform .*loss\.name={loss}"):
        finetune.predict(tmp_path / "scores", animals / "val", prior="uniform", device="cpu")
    unchanged = finetune.predict(tmp_path / "scores", animals / "val", prior="model", device="cpu")
    assert unchanged.predictions
    assert unchanged.prior["class_prior"] is None
    assert f"loss.name={loss}" in unchanged.prior["target_prior"]
    readme = (tmp_path / "scores" / "README.md").read_text(encoding="utf-8")
    assert "assume no class prior" in readme
    assert "Class prior of the probabilities" not in readme
    refitted = replace(bundle.card, facts={**facts, "imbalance": "crt"})
    save_bundle(bundle.network, refitted, tmp_path / "refitted")
    adjusted = finetune.predict(
        tmp_path / "refitted", animals / "val", prior="uniform", device="cpu"
    )
    assert adjusted.predictions
