"""What is done to a classifier after training: once, exactly, and seen in what is measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.commands.fit.fit import FitResult
from finetune.errors import ConfigError
from finetune.inference.predictor import Predictor
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.probe.head_rebalancing import REBALANCED_KEY, is_rebalanced, rebalance
from finetune.types import Reporter, Split
from tests.support.runs import (
    checkpoint,
    manifest_of,
    rows,
    small_config,
    small_training,
    weights,
    write_photos,
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return photos of which one class has 16 to train on, one 8 and one 2; never change it."""
    root = write_photos(tmp_path_factory.mktemp("uneven") / "photos", num_train=16)
    for name, count in (("bee", 8), ("cow", 2)):
        for file in sorted((root / "train" / name).iterdir())[count:]:
            file.unlink()
    return root


def fit(root: Path, place: Path, output: str, **more: object) -> FitResult:
    settings: dict[str, object] = {
        "data__path": str(root),
        "data__leakage": "ignore",
        "model__weights": str(place / "weights.pth"),
        "output": str(place / output),
        **more,
    }
    result: FitResult = finetune.fit(small_config(**settings))
    return result


def test_crt_fits_the_trained_networks_head_to_all_classes_alike(uneven: Path, place: Path) -> None:
    plain = fit(uneven, place, "plain", imbalance__strategy="none", loss__label_smoothing=0.1)
    found = fit(uneven, place, "crt", imbalance__strategy="crt")
    before, after = weights(plain.run_dir, "best"), weights(found.run_dir, "best")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "bias"}
    assert len(changed) == 2, "the backbone learns as without"
    said = checkpoint(found.run_dir, "best")[REBALANCED_KEY]
    assert said["way"] == "crt"

    manifest = manifest_of(uneven)
    samples = manifest.get_samples(Split.TRAIN)
    model = load_model(found.run_dir)
    head = find_linear_head(model.network)
    assert head is not None
    with capture_head_inputs(head) as seen:
        Predictor(model, device="cpu").predict_logits(manifest.resolve_paths(samples))
    features, labels = torch.cat(seen).numpy(), np.array(manifest.encode_labels(samples))
    scale = float(np.sqrt(np.square(features - features.mean(0)).sum(1).mean()))
    reference = LogisticRegression(
        C=1 / (said["penalty"] * len(labels) * scale**2), class_weight="balanced", max_iter=10_000
    ).fit(features, labels)
    mine = (torch.from_numpy(features) @ head.weight.T + head.bias).softmax(1).detach().numpy()
    assert (mine.argmax(1) == reference.predict(features)).mean() > 0.9


def test_tau_is_chosen_by_balanced_accuracy_and_the_card_says_what_was_done(
    uneven: Path, place: Path
) -> None:
    found = fit(uneven, place, "run", imbalance__strategy="tau_norm")
    best = place / "run" / "checkpoints" / "best.ckpt"
    said = checkpoint(found.run_dir, "best")[REBALANCED_KEY]
    assert found.metrics["val"]["balanced_accuracy"] == pytest.approx(said["after"])
    plan = small_training(
        uneven, model__weights=str(place / "weights.pth"), imbalance__strategy="none"
    ).probe
    assert plan is not None
    device = torch.device("cpu")
    for row, expected in ((0, 0.0), (1, None)):
        # a head that is as good without, and one that only sees the largest class without
        stored = checkpoint(found.run_dir, "best")
        names = [name for name in stored["state_dict"] if ".fc." in name]
        for name in names if row else ():
            # the same for all classes, and then large for one: it is always predicted
            stored["state_dict"][name] += 3.0 if name.endswith("bias") else 0.0
            stored["state_dict"][name][0] *= 40
        torch.save(stored, best)
        priors = load_model(best).card.priors
        assert priors is not None
        again = rebalance(best, "tau_norm", plan, device=device, reporter=Reporter())
        after = load_model(best).card.priors
        assert after is not None
        assert again.balanced_accuracy_after >= again.balanced_accuracy_before
        assert (again.balanced_accuracy_after > again.balanced_accuracy_before) == (
            (again.tau or 0) > 0
        ), "the smallest of several"
        if expected is not None and again.tau == expected:
            assert after == priors
        if again.tau:
            assert after.model == pytest.approx((1 / 3,) * 3)
    assert again.tau, "the second head gains by it"


def test_crt_states_a_prior_of_its_own(uneven: Path, place: Path) -> None:
    found = fit(uneven, place, "run", imbalance__strategy="crt")
    priors = load_model(found.run_dir).card.priors
    assert priors is not None
    assert priors.model == pytest.approx((1 / 3,) * 3)
    assert priors.train == pytest.approx((16 / 26, 8 / 26, 2 / 26))


def test_what_was_done_is_done_once(uneven: Path, place: Path) -> None:
    found = fit(uneven, place, "run", imbalance__strategy="crt")
    best = place / "run" / "checkpoints" / "best.ckpt"
    assert is_rebalanced(best)
    before = best.read_bytes()
    # as if it had been killed between the classifier and the bundle
    (place / "run" / ".done").unlink()
    shutil.rmtree(place / "run" / "bundle")
    again = finetune.resume(place / "run")
    assert best.read_bytes() == before
    assert again.metrics == found.metrics


def test_averaged_weights_get_the_head_too(uneven: Path, place: Path) -> None:
    found = fit(uneven, place, "run", imbalance__strategy="crt", optim__swa_fraction=0.5)
    stored = checkpoint(found.run_dir, "best")
    name = next(name for name in stored["state_dict"] if name.endswith("fc.weight"))
    head = find_linear_head(load_model(found.run_dir / "checkpoints" / "best.ckpt").network)
    assert head is not None
    assert torch.equal(head.weight.detach(), stored["state_dict"][name])


@pytest.mark.parametrize("unfreeze", ["auto", "linear_probe"])
def test_post_hoc_answers_are_those_of_the_priors_and_of_every_epoch(
    unfreeze: str, uneven: Path, place: Path
) -> None:
    epochs = 1 if unfreeze == "linear_probe" else 2
    found = fit(
        uneven, place, "run", imbalance__strategy="post_hoc", unfreeze__name=unfreeze,
        trainer__epochs=epochs,
    )  # fmt: skip
    card = load_model(found.run_dir).card
    assert card.priors is not None
    assert card.priors.target == pytest.approx((1 / 3,) * 3)
    assert card.priors.model == pytest.approx((16 / 26, 8 / 26, 2 / 26))
    # the rows of the epochs are those of the finished model
    best = max(rows(found.run_dir), key=lambda row: float(row["val/macro_f1"]))
    assert float(best["val/macro_f1"]) == pytest.approx(found.metrics["val"]["macro_f1"])
    plain = finetune.evaluate(found.run_dir, device="cpu", prior="model")
    adjusted = finetune.evaluate(found.run_dir, device="cpu")
    assert adjusted.evaluation.metrics == pytest.approx(found.metrics["val"])
    cows = [result.evaluation.per_class[2].num_predicted for result in (plain, adjusted)]
    assert cows[1] >= cows[0]
    facts = read_card_json(found.run_dir / "bundle")["facts"]
    assert json.dumps(facts["imbalance"]) == '"post_hoc"'


def test_both_need_the_probes_way(uneven: Path, place: Path) -> None:
    for way in ("crt", "tau_norm"):
        with pytest.raises(
            ConfigError, match=f"imbalance.head_rebalancing={way} cannot apply to probe.enab"
        ):
            fit(uneven, place, "run", imbalance__strategy=way, probe__enabled="off")


def test_the_best_epoch_states_the_shares_that_it_was_shown(uneven: Path, place: Path) -> None:
    found = fit(
        uneven, place, "run", imbalance__strategy="drs", trainer__epochs=5, probe__enabled="off"
    )
    for name in ("best", "last"):
        file = found.run_dir / "checkpoints" / f"{name}.ckpt"
        epoch = checkpoint(found.run_dir, name)["epoch"]
        priors = load_model(file).card.priors
        assert priors is not None
        expected = (1 / 3,) * 3 if epoch == 4 else (16 / 26, 8 / 26, 2 / 26)
        assert priors.model == pytest.approx(expected, abs=1e-6)
