"""Tests of ``finetune tune`` on multi-label images: hold-out, search space, and whole studies."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, log_loss

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.tune.hold_out import halve_validation
from finetune.commands.tune.space.label_space import choose_shared_monitor
from finetune.commands.tune.space.search_space import SearchDimension
from finetune.commands.tune.tune import TuneOptions, plan_tune, tune
from finetune.commands.tune.tune_result import TuneResult
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, read_manifest
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor
from finetune.types import Sample, Split
from tests.commands.tune.conftest import build_scratch_config
from tests.support.runs import assert_same_bits, load_weights

LABELS = ("blue", "green", "red")
RATES = (SearchDimension("optim.lr", (), 1e-3, 1e-2, is_log=True),)
PRECISION = "mean_average_precision"


def write_labels(root: Path, *, num_images: int = 60, has_splits: bool = False) -> Path:
    """Write images with up to three faint colours under noise, and return their CSV."""
    random = np.random.default_rng(3)
    root.mkdir()
    rows = [("path", "labels", *(["split"] if has_splits else []))]
    for number in range(num_images):
        present = random.random(3) < np.array([0.5, 0.4, 0.3])
        pixels = random.integers(0, 190, (32, 32, 3))
        pixels[..., present[::-1]] += 25
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:02}.png")
        names = [name for name, is_true in zip(LABELS, present, strict=True) if is_true]
        split = ["val" if number < num_images // 3 else "train"] if has_splits else []
        rows.append((f"{number:02}.png", "|".join(names), *split))
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return root / "labels.csv"


def build_study_config(data: Path, output: Path, **assignments: object) -> Config:
    """Return the config of a study of networks that begin without a probe."""
    return build_scratch_config(data, output, probe__enabled="off", **assignments)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the CSV of multi-label images without splits; never change them."""
    return write_labels(tmp_path_factory.mktemp("data") / "colours")


def test_halve_validation_keeps_each_label_in_both_halves_and_groups_together() -> None:
    samples = [Sample(f"train/{name}.png", name, Split.TRAIN, labels=(name,)) for name in LABELS]
    for number in range(40):
        labels = LABELS[number % 3 : number % 3 + 2] if number < 36 else ()
        group = f"g{number // 2}" if number >= 36 else ""
        name = f"val/{number}.png"
        samples.append(Sample(name, "|".join(labels), Split.VAL, group=group, labels=labels))
    manifest = Manifest(Path("photos"), LABELS, tuple(samples))
    halved = halve_validation(manifest, seed=0)
    test, val = halved.get_samples(Split.TEST), halved.get_samples(Split.VAL)
    assert len(test) == len(val) == 20
    counts = [Counter(name for s in half for name in s.class_names) for half in (test, val)]
    for name in LABELS:
        assert abs(counts[0][name] - counts[1][name]) <= 1, counts
    groups = [{sample.group for sample in half} - {""} for half in (test, val)]
    assert not groups[0] & groups[1]
    assert halved.get_samples(Split.TRAIN) == manifest.get_samples(Split.TRAIN)
    assert halve_validation(manifest, seed=0) == halved


def test_plan_of_multi_label_study_has_no_key_of_one_class(colours: Path, tmp_path: Path) -> None:
    tree = plan_tune(build_study_config(colours, tmp_path / "study")).to_json()
    assert tree["is_multi_label"]
    assert tree["monitor"] == "calibrated_loss"
    assert sum(tree["num_images"].values()) == 60
    assert tree["num_images"]["test"] == pytest.approx(12, abs=1)
    keys = [dimension["key"] for dimension in tree["space"]]
    assert {"optim.weight_decay", "augment.mixup"} <= set(keys)
    assert "loss.label_smoothing" not in keys


@pytest.mark.parametrize(
    ("key", "choices", "message"),
    [
        ("loss.name", ("bce", "cross_entropy"), r"--search loss\.name: loss\.name=cross_entropy"),
        ("imbalance.strategy", ("none", "weighted"), r"imbalance\.strategy=weighted cannot apply"),
        ("augment.rare_class_preset", ("off", "strong"), r"augment\.rare_class_preset=strong"),
    ],
)
def test_search_of_choices_for_one_class_is_refused_by_name(
    key: str, choices: tuple[str, ...], message: str, colours: Path, tmp_path: Path
) -> None:
    space = (SearchDimension(key, choices),)
    with pytest.raises(ConfigError, match=message):
        plan_tune(build_study_config(colours, tmp_path / "study"), TuneOptions(space=space))


def test_search_of_multi_label_loss_on_classes_is_refused_by_name(
    classes: Path, tmp_path: Path
) -> None:
    space = (SearchDimension("loss.name", ("cross_entropy", "bce")),)
    with pytest.raises(ConfigError, match=r"loss\.name=bce cannot apply to images of one class"):
        plan_tune(build_scratch_config(classes, tmp_path / "study"), TuneOptions(space=space))


def test_search_of_losses_that_distort_probabilities_is_judged_by_precision(
    colours: Path, tmp_path: Path
) -> None:
    space = (SearchDimension("loss.name", ("bce", "asymmetric")),)
    config = build_study_config(colours, tmp_path / "study")
    plan = plan_tune(config, TuneOptions(space=space))
    assert plan.settings.monitor == PRECISION
    assert plan.config.checkpoint.monitor == PRECISION
    assert plan.settings.overrides["checkpoint.monitor"] == PRECISION
    given = build_study_config(colours, tmp_path / "study", checkpoint__monitor="loss")
    assert plan_tune(given, TuneOptions(space=space)).settings.monitor == "loss"


def test_null_among_the_choices_of_a_search_does_not_change_what_judges_it() -> None:
    space = (
        SearchDimension("model.drop_rate", (None, 0.2)),
        SearchDimension("optim.lr", (), 1e-4, 1e-2),
        SearchDimension("imbalance.strategy", ("none",)),
    )
    assert choose_shared_monitor(Config(), space) is None
    weighted = SearchDimension("imbalance.strategy", ("none", "class_weights"))
    assert choose_shared_monitor(Config(), (*space, weighted)) == PRECISION


def test_given_validation_images_without_labels_are_refused(tmp_path: Path) -> None:
    file = write_labels(tmp_path / "data", num_images=30, has_splits=True)
    plan = plan_tune(build_study_config(file, tmp_path / "study"))
    assert plan.to_json()["num_images"] == {"train": 20, "val": 5, "test": 5}
    lines = file.read_text().splitlines()
    emptied = [f"{line.split(',')[0]},,val" if line.endswith("val") else line for line in lines]
    file.write_text("\n".join(emptied))
    with pytest.raises(DataError, match=r"None of the \d+ val images? has a label"):
        plan_tune(build_study_config(file, tmp_path / "study"))


@pytest.fixture(scope="module")
def study(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """Return a finished study of three trials, the default one hopeless; never change it."""
    output = tmp_path_factory.mktemp("studies") / "rates"
    config = build_study_config(colours, output, calibration__enabled="on")
    return tune(config, TuneOptions(num_trials=3, space=RATES))


@pytest.mark.runs
def test_tune_gain_is_that_of_scikit_learn_on_the_hold_out(
    study: TuneResult, colours: Path
) -> None:
    assert study.best is not None
    assert not study.best.is_default
    assert study.best.value == min(row.value or 9.0 for row in study.trials)
    assert study.gain is not None
    assert study.gain.metric == "loss"
    whole = read_manifest(study.study_dir / "manifest.csv", root=colours.parent)
    for split, compared in (
        (Split.TEST, study.gain.held_out),
        (Split.VAL, study.gain.validation),
    ):
        for number, name in ((1, "before"), (study.best.number, "after")):
            run = study.study_dir / "trials" / f"{number:03}"
            p, targets, thresholds = predict(run, whole, split)
            expected = {
                "loss": np.mean(
                    [log_loss(y, q, labels=[0, 1]) for y, q in zip(targets.T, p.T, strict=True)]
                ),
                PRECISION: average_precision_score(targets, p),
                "subset_accuracy": ((p >= thresholds) == (targets > 0)).all(axis=1).mean(),
            }
            found = {key: getattr(diff, name) for key, diff in compared.differences.items()}
            assert found == pytest.approx(expected, abs=1e-6)
            assert compared.num_images == len(targets)
    low, high = (
        getattr(study.gain.held_out.differences[PRECISION], end) for end in ("low", "high")
    )
    assert low < high
    assert "log loss" in study.summary


def predict(
    run: Path, manifest: Manifest, split: Split
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float64]]:
    """Return the probabilities, the labels and the thresholds of a trial's model."""
    samples, model = manifest.get_samples(split), load_model(run)
    probabilities = Predictor(model, device="cpu").predict_proba(manifest.resolve_paths(samples))
    targets = torch.from_numpy(manifest.encode_targets(samples)).float().numpy()
    return probabilities.double().numpy(), targets, np.array(model.card.thresholds)


@pytest.mark.runs
def test_tune_best_config_repeats_the_best_multi_label_trial_bit_for_bit(
    study: TuneResult, tmp_path: Path
) -> None:
    assert study.best is not None
    file = study.study_dir / "best.yaml"
    assert "mean average precision" in file.read_text()
    config = build_config(
        read_config_file(file),
        assignments={"data.test_fraction": 0.2, "output": str(tmp_path / "run")},
    )
    again = finetune.fit(config)
    trial = study.study_dir / "trials" / f"{study.best.number:03}"
    assert_same_bits(load_weights(again.run_dir, "best"), load_weights(trial, "best"))
    assert load_model(again.run_dir).card.thresholds == load_model(trial).card.thresholds
