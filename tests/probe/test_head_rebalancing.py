"""Rebalancing of a trained classifier: cRT, tau-normalisation and post-hoc adjustment."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.probe.head_rebalancing import (
    REBALANCED_KEY,
    apply_tau_normalisation,
    is_rebalanced,
    rebalance,
)
from finetune.types import Reporter, Split
from tests.support.runs import (
    build_photo_manifest,
    create_small_config,
    create_small_training,
    get_class_evaluation,
    load_checkpoint,
    load_weights,
    read_rows,
    write_photos,
    write_weights,
)

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 16, 8 and 2 training images in three classes; never change it."""
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
    result: FitResult = finetune.fit(create_small_config(**settings))
    return result


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs that several tests read; never change it."""
    place = tmp_path_factory.mktemp("shared")
    write_weights(place / "weights.pth")
    return place


@pytest.fixture(scope="module")
def plain_run(uneven: Path, shared: Path) -> FitResult:
    """Return a run without rebalancing."""
    return fit(uneven, shared, "plain", imbalance__strategy="none", loss__label_smoothing=0.1)


@pytest.fixture(scope="module")
def crt_run(uneven: Path, shared: Path) -> FitResult:
    """Return the run with the same training whose head was refitted."""
    return fit(uneven, shared, "crt", imbalance__strategy="crt")


def copy_run(result: FitResult, output: Path) -> Path:
    """Return a copy of a run that a test may change."""
    return Path(shutil.copytree(result.run_dir, output, symlinks=True))


def test_crt_keeps_groups_in_one_fold(
    uneven: Path, plain_run: FitResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []

    def record(*args: Any, **options: Any) -> CrossValidatedHead:
        fitted.append(fit_head(*args, **options))
        return fitted[-1]

    run = copy_run(plain_run, place / "grouped")
    plan = create_small_training(uneven, model__weights=str(place / "weights.pth")).probe
    assert plan is not None
    groups = np.arange(len(plan.train.labels))
    groups[:4] = 0
    monkeypatch.setattr("finetune.probe.head_rebalancing.fit_head", record)
    rebalance(
        run / "checkpoints" / "best.ckpt",
        "crt",
        replace(plan, train=replace(plan.train, groups=groups)),
        device=torch.device("cpu"),
        reporter=Reporter(),
    )
    assert len(set(fitted[0].folds[:4])) == 1


def test_crt_refits_the_head_with_class_balanced_weights(
    uneven: Path, plain_run: FitResult, crt_run: FitResult
) -> None:
    before, after = (load_weights(run.run_dir, "best") for run in (plain_run, crt_run))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "bias"}
    assert len(changed) == 2, "the backbone is trained as without cRT"
    stored = load_checkpoint(crt_run.run_dir, "best")[REBALANCED_KEY]
    assert stored["method"] == "crt"

    manifest = build_photo_manifest(uneven)
    samples = manifest.get_samples(Split.TRAIN)
    model = load_model(crt_run.run_dir)
    head = find_linear_head(model.network)
    assert head is not None
    with capture_head_inputs(head) as inputs:
        Predictor(model, device="cpu").predict_logits(manifest.resolve_paths(samples))
    features, labels = torch.cat(inputs).numpy(), np.array(manifest.encode_labels(samples))
    scale = float(np.sqrt(np.square(features - features.mean(0)).sum(1).mean()))
    reference = LogisticRegression(
        C=1 / (stored["penalty"] * len(labels) * scale**2), class_weight="balanced", max_iter=10_000
    ).fit(features, labels)
    logits = torch.from_numpy(features) @ head.weight.T + head.bias
    predictions = logits.argmax(dim=1).numpy()
    assert (predictions == reference.predict(features)).mean() > 0.9


def test_tau_norm_chooses_the_smallest_tau_of_best_balanced_accuracy(
    uneven: Path, place: Path
) -> None:
    result = fit(uneven, place, "run", imbalance__strategy="tau_norm")
    best = place / "run" / "checkpoints" / "best.ckpt"
    stored = load_checkpoint(result.run_dir, "best")[REBALANCED_KEY]
    balanced_accuracy = result.metrics["val"]["balanced_accuracy"]
    assert balanced_accuracy == pytest.approx(stored["balanced_accuracy_after"])
    plan = create_small_training(
        uneven, model__weights=str(place / "weights.pth"), imbalance__strategy="none"
    ).probe
    assert plan is not None
    device = torch.device("cpu")
    for is_biased in (False, True):
        # a head that is as good without it, and one that without it predicts the largest class only
        state = load_checkpoint(result.run_dir, "best")
        names = [name for name in state["state_dict"] if ".fc." in name]
        for name in names if is_biased else ():
            # the same shift for all classes, then a large scale for one: it is always predicted
            state["state_dict"][name] += 3.0 if name.endswith("bias") else 0.0
            state["state_dict"][name][0] *= 40
        torch.save(state, best)
        priors_before = load_model(best).card.priors
        rebalanced = rebalance(best, "tau_norm", plan, device=device, reporter=Reporter())
        priors_after = load_model(best).card.priors
        assert priors_after is not None
        gain = rebalanced.balanced_accuracy_after - rebalanced.balanced_accuracy_before
        assert gain >= 0
        assert (gain > 0) == ((rebalanced.tau or 0) > 0), "the smallest tau in case of a tie"
        if rebalanced.tau == 0:
            assert priors_after == priors_before
        if rebalanced.tau:
            assert priors_after.model == pytest.approx((1 / 3,) * 3)
    assert rebalanced.tau, "the second head benefits"


def test_crt_sets_a_uniform_model_prior(crt_run: FitResult) -> None:
    priors = load_model(crt_run.run_dir).card.priors
    assert priors is not None
    assert priors.model == pytest.approx((1 / 3,) * 3)
    assert priors.train == pytest.approx((16 / 26, 8 / 26, 2 / 26))


def test_rebalancing_of_a_resumed_run_is_not_repeated(crt_run: FitResult, place: Path) -> None:
    best = copy_run(crt_run, place / "run") / "checkpoints" / "best.ckpt"
    assert is_rebalanced(best)
    before = best.read_bytes()
    # as if killed between the rebalancing and the bundle
    (place / "run" / ".done").unlink()
    shutil.rmtree(place / "run" / "bundle")
    resumed = finetune.resume(place / "run")
    assert best.read_bytes() == before
    assert resumed.metrics == crt_run.metrics


def test_crt_replaces_the_head_of_averaged_weights(uneven: Path, place: Path) -> None:
    result = fit(uneven, place, "run", imbalance__strategy="crt", optim__swa_fraction=0.5)
    stored = load_checkpoint(result.run_dir, "best")
    name = next(name for name in stored["state_dict"] if name.endswith("fc.weight"))
    head = find_linear_head(load_model(result.run_dir / "checkpoints" / "best.ckpt").network)
    assert head is not None
    assert torch.equal(head.weight.detach(), stored["state_dict"][name])


@pytest.mark.parametrize("unfreeze", ["auto", "linear_probe"])
def test_post_hoc_adjusts_final_and_epoch_metrics_to_the_uniform_prior(
    unfreeze: str, uneven: Path, place: Path
) -> None:
    epochs = 1 if unfreeze == "linear_probe" else 2
    result = fit(
        uneven, place, "run", imbalance__strategy="post_hoc", unfreeze__name=unfreeze,
        trainer__epochs=epochs,
    )  # fmt: skip
    card = load_model(result.run_dir).card
    assert card.priors is not None
    assert card.priors.target == pytest.approx((1 / 3,) * 3)
    assert card.priors.model == pytest.approx((16 / 26, 8 / 26, 2 / 26))
    # the metrics of the epochs are adjusted as those of the finished model
    best = max(read_rows(result.run_dir), key=lambda row: float(row["val/macro_f1"]))
    assert float(best["val/macro_f1"]) == pytest.approx(result.metrics["val"]["macro_f1"])
    plain = finetune.evaluate(result.run_dir, device="cpu", prior="model")
    adjusted = finetune.evaluate(result.run_dir, device="cpu")
    assert adjusted.evaluation.metrics == pytest.approx(result.metrics["val"])
    num_cows = [get_class_evaluation(one).per_class[2].num_predicted for one in (plain, adjusted)]
    assert num_cows[1] >= num_cows[0]
    facts = read_card_json(result.run_dir / "bundle")["facts"]
    assert json.dumps(facts["imbalance"]) == '"post_hoc"'


@pytest.mark.parametrize("method", ["crt", "tau_norm"])
def test_rebalancing_without_a_probe_raises_config_error(
    method: str, uneven: Path, place: Path
) -> None:
    message = rf"imbalance\.head_rebalancing={method} cannot apply to probe\.enabled=off"
    with pytest.raises(ConfigError, match=message):
        fit(uneven, place, "run", imbalance__strategy=method, probe__enabled="off")


def test_checkpoint_stores_the_model_prior_of_its_epoch(uneven: Path, place: Path) -> None:
    result = fit(
        uneven, place, "run", imbalance__strategy="drs", trainer__epochs=5, probe__enabled="off"
    )
    for name in ("best", "last"):
        file = result.run_dir / "checkpoints" / f"{name}.ckpt"
        epoch = load_checkpoint(result.run_dir, name)["epoch"]
        priors = load_model(file).card.priors
        assert priors is not None
        expected = (1 / 3,) * 3 if epoch == 4 else (16 / 26, 8 / 26, 2 / 26)
        assert priors.model == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def head() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 9, generator=generator) * torch.tensor([[8.0], [4.0], [1.0], [0.2]])
    return weight, torch.randn(4, generator=generator)


def test_apply_tau_normalisation_0_changes_nothing(head: tuple[torch.Tensor, torch.Tensor]) -> None:
    for before, after in zip(head, apply_tau_normalisation(*head, 0.0), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_apply_tau_normalisation_1_equalises_norms(head: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, bias = apply_tau_normalisation(*head, 1.0)
    norms = weight.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(4))
    # w / |w| ** tau as in the paper, up to one factor for all classes
    scale = norms[0]
    torch.testing.assert_close(weight / scale, head[0] / head[0].norm(dim=1, keepdim=True))
    torch.testing.assert_close(bias / scale, head[1] / head[0].norm(dim=1))


def test_apply_tau_normalisation_zero_weights_is_finite() -> None:
    weight, bias = apply_tau_normalisation(
        torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2), 0.5
    )
    assert bool(torch.isfinite(weight).all())
    assert bool((bias == 0).all())
