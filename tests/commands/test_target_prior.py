"""Answers for other shares of the classes: at evaluate, predict and export, with no retraining."""

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
from finetune.types import Split
from tests.conftest import CLASSES
from tests.support.helpers import Recorder
from tests.support.runs import manifest_of, small_config, write_photos

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def model(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with a temperature and a prior far from equal shares; never change it."""
    bundle = load_model(trained.run_dir)
    model = (0.6, 0.3, 0.1)
    card = replace(bundle.card, temperature=0.6, priors=Priors((0.7, 0.2, 0.1), model))
    folder = tmp_path_factory.mktemp("priors") / "bundle"
    save_bundle(bundle.network, card, folder)
    return folder


@pytest.fixture
def shares(tmp_path: Path) -> Path:
    """Return a file that never wants the class in the middle."""
    file = tmp_path / "shares.json"
    file.write_text(json.dumps(dict(zip(CLASSES, (1, 0, 3), strict=True))), encoding="utf-8")
    return file


def probabilities(model: Path, images: Path, **more: Any) -> Array:
    """Return what ``predict`` says of each class, in class order, shape (N, K)."""
    result = finetune.predict(model, images, top_k=3, device="cpu", **more)
    rows = [dict(zip(p.labels, p.probabilities, strict=True)) for p in result.predictions]
    return np.array([[row[name] for name in CLASSES] for row in rows])


def moved(own: Array, target: tuple[float, ...]) -> Array:
    """Return what Bayes' rule makes of answers for (0.6, 0.3, 0.1)."""
    ratio = own * np.array(target) / np.array((0.6, 0.3, 0.1))
    return np.asarray(ratio / ratio.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("prior", "target"),
    [("uniform", (1 / 3, 1 / 3, 1 / 3)), ("train", (0.7, 0.2, 0.1)), ("FILE", (0.25, 0.0, 0.75))],
)
def test_predict_evaluate_and_export_give_the_same_answers_for_a_prior(
    model: Path, insects: Path, tmp_path: Path, shares: Path, prior: str, target: tuple[float, ...]
) -> None:
    prior = str(shares) if prior == "FILE" else prior
    expected = moved(probabilities(model, insects), target)
    found = probabilities(model, insects, prior=prior)
    np.testing.assert_allclose(found, expected, atol=1e-6)

    evaluated = finetune.evaluate(model, insects, device="cpu", prior=prior).to_json()
    true = [CLASSES.index(file.parent.name) for file in sorted(insects.rglob("*.png"))]
    assert evaluated["metrics"]["accuracy"] == pytest.approx((expected.argmax(1) == true).mean())
    assert evaluated["prior"]["shares"] == pytest.approx(dict(zip(CLASSES, target, strict=True)))
    assert (evaluated["prior"]["asked"], evaluated["prior"]["adjusted"]) == (prior, True)
    json.dumps(evaluated)

    recorder = Recorder()
    result = finetune.export(
        model, tmp_path / "model", images=insects, prior=prior, reporter=recorder
    )
    assert recorder.warnings == []
    assert ("Never predicted" in "".join(recorder.notes)) is (0 in target)
    assert result.parity is not None  # timm alone against the adjusted answers
    assert result.parity.same_top_class == 38
    card = load_model(tmp_path / "model").card
    assert card.priors == Priors((0.7, 0.2, 0.1), pytest.approx(target), None)  # type: ignore[arg-type]
    assert card.temperature == 1
    assert card.facts["prior_in_head"] == pytest.approx(target)
    np.testing.assert_allclose(probabilities(tmp_path / "model", insects), expected, atol=1e-5)
    said = finetune.evaluate(tmp_path / "model", insects, device="cpu").to_json()
    assert said["prior"]["adjusted"] is False
    assert said["prior"]["shares"] == pytest.approx(evaluated["prior"]["shares"])
    assert said["metrics"]["accuracy"] == evaluated["metrics"]["accuracy"]


def test_an_exported_model_can_be_moved_again(model: Path, insects: Path, tmp_path: Path) -> None:
    finetune.export(model, tmp_path / "one", images=insects, prior="uniform")
    expected = moved(probabilities(model, insects), (0.7, 0.2, 0.1))
    found = probabilities(tmp_path / "one", insects, prior="train")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    finetune.export(tmp_path / "one", tmp_path / "two", images=insects, prior="train")
    np.testing.assert_allclose(probabilities(tmp_path / "two", insects), expected, atol=1e-5)
    finetune.export(tmp_path / "one", tmp_path / "same", images=insects, prior="model")
    first, same = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "same"))
    assert first == same, "once is enough"


def test_a_class_that_was_exported_away_cannot_be_asked_for_again(
    model: Path, insects: Path, tmp_path: Path, shares: Path
) -> None:
    finetune.export(model, tmp_path / "one", images=insects, prior=str(shares))
    with pytest.raises(ConfigError, match=r"--prior uniform cannot apply: .* gives fly no share"):
        finetune.predict(tmp_path / "one", insects, device="cpu", prior="uniform")
    again = probabilities(tmp_path / "one", insects, prior=str(shares))
    np.testing.assert_allclose(again, probabilities(tmp_path / "one", insects), atol=1e-6)
    assert (again[:, 1] == 0).all()
    # and its backbone is as good as ever
    network = create_network("resnet10t", num_classes=3, weights=str(tmp_path / "one"))
    assert network.report.loaded_fraction == 1
    assert all(bool(tensor.isfinite().all()) for tensor in network.module.state_dict().values())


def test_a_head_that_cannot_hold_it_leaves_the_target_in_the_card(
    insects: Path, tmp_path: Path
) -> None:
    from finetune.bundle.model_card import ModelCard
    from tests.support.networks import randomise

    name = "deit_tiny_distilled_patch16_224"
    made = create_network(name, num_classes=2, weights="random", image_size=32)
    randomise(made.module)
    card = ModelCard(
        name, made.model_args, ("a", "b"), made.spec, priors=Priors((0.9, 0.1), (0.9, 0.1))
    )
    save_bundle(made.module, card, tmp_path / "bundle")
    recorder = Recorder()
    result = finetune.export(
        tmp_path / "bundle",
        tmp_path / "model",
        images=insects / "fly",
        prior="uniform",
        reporter=recorder,
    )
    assert result.parity is not None
    assert "timm alone adds the logarithm of the ratio of the priors" in recorder.warnings[0]
    shipped = load_model(tmp_path / "model").card.priors
    assert shipped == Priors((0.9, 0.1), (0.9, 0.1), (0.5, 0.5))


def test_a_stored_target_holds_until_another_is_asked_for(
    model: Path, insects: Path, tmp_path: Path
) -> None:
    bundle = load_model(model)
    priors = Priors((0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (1 / 3,) * 3)
    save_bundle(bundle.network, replace(bundle.card, priors=priors), tmp_path / "stored")
    own, balanced = (probabilities(model, insects, prior=prior) for prior in (None, "uniform"))
    stored = tmp_path / "stored"
    assert (probabilities(stored, insects) == balanced).all()
    assert (probabilities(stored, insects, prior="model") == own).all()
    assert finetune.predict(stored, insects, device="cpu").prior["adjusted"] is True
    finetune.export(stored, tmp_path / "exported", images=insects)
    np.testing.assert_allclose(probabilities(tmp_path / "exported", insects), balanced, atol=1e-5)


def test_tta_adjusts_each_view(mirrored: Path, insects: Path, tmp_path: Path) -> None:
    bundle = load_model(mirrored)
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
    found = probabilities(tmp_path / "bundle", insects, prior="uniform", tta=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_checkpoint_alone_knows_its_priors(trained: FitResult, insects: Path) -> None:
    best = trained.run_dir / "checkpoints" / "best.ckpt"
    assert load_model(best).card.priors == load_model(trained.run_dir).card.priors is not None
    found = probabilities(best, insects, prior="uniform")
    assert (found == probabilities(trained.run_dir, insects, prior="uniform")).all()


def test_an_older_model_says_that_it_does_not_know(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(trained.run_dir / "bundle", tmp_path / "older"))
    tree = read_card_json(older)
    del tree["priors"]
    (older / "finetune.json").write_text(json.dumps(tree), encoding="utf-8")
    expected = probabilities(trained.run_dir, insects)
    assert (probabilities(older, insects) == expected).all()
    said = finetune.evaluate(older, insects, device="cpu").to_json()["prior"]
    assert "unknown" in said["target_prior"]
    assert said["shares"] is None
    message = f"--prior uniform cannot apply: an older finetune wrote {older}"
    for verb in (finetune.evaluate, finetune.predict):
        with pytest.raises(ConfigError, match=message):
            verb(older, insects, device="cpu", prior="uniform")
    with pytest.raises(ConfigError, match=message):
        finetune.export(older, tmp_path / "model", prior="uniform")
    assert not (tmp_path / "model").exists()


def test_a_run_whose_card_names_a_target_is_measured_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``post_hoc`` does, for a prior that training does not give."""
    import finetune.builders.run as building
    import finetune.builders.schedules as recipes

    photos = write_photos(tmp_path / "photos")
    model, equal = (0.8, 0.1, 0.1), (1 / 3,) * 3
    monkeypatch.setattr(building, "compute_run_priors", lambda *_: Priors(model, model, equal))
    monkeypatch.setattr(recipes, "model_prior_at", lambda *_: lambda _: model)
    config = {"data__path": str(photos), "calibration__enabled": "on", "trainer__epochs": 1}
    result = finetune.fit(small_config(output=str(tmp_path / "run"), **config))
    card = load_model(result.run_dir).card
    assert card.priors == Priors(model, model, equal)
    assert load_model(result.run_dir / "checkpoints" / "best.ckpt").card.priors == card.priors
    assert result.evaluations["val"]["prior"]["adjusted"] is True
    evaluated = finetune.evaluate(result.run_dir, device="cpu")
    assert dict(evaluated.evaluation.metrics) == dict(result.metrics["val"])
    manifest = manifest_of(photos)
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
