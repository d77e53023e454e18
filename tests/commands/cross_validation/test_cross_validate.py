"""Tests of a cross-validation through the public functions: files, numbers, resume and refusals."""

import csv
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.fit.fit import FitResult
from finetune.commands.fit.lr_find import find_learning_rate
from finetune.config.load import build_config, replace_values
from finetune.distributed.signals import StopRequest
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor
from finetune.types import Split
from tests.support.helpers import InterruptingReporter, RecordingReporter, create_noise
from tests.support.runs import read_rows, write_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

NUM_FOLDS = 3


def build_run_config(data: Path, output: Path, **assignments: Any) -> finetune.Config:
    """Return the config of a cross-validation of seconds; ``section__key`` is a dotted key."""
    tree = {
        "data": {"path": str(data), "image_size": 32, "num_workers": 0},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "none"},
        "trainer": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "precision": "32-true"},
        "cross_validation": {"num_folds": NUM_FOLDS},
        "output": str(output),
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config(tree, assignments=given)


def build_probe_config(data: Path, folder: Path) -> finetune.Config:
    """Return the config of a cross-validation of linear probes, with weights in the folder."""
    weights = write_weights(folder / "weights.pth")
    return build_run_config(
        data, folder / "run", model__weights=str(weights), unfreeze__name="linear_probe",
        trainer__epochs="auto",
    )  # fmt: skip


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def result(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a finished cross-validation with a test split; never change it."""
    output = tmp_path_factory.mktemp("cross_validation") / "run"
    return finetune.fit(build_run_config(insects, output, data__test_fraction=0.2))


def test_each_image_is_held_out_once_and_test_images_never(result: FitResult) -> None:
    manifest = read_csv(result.run_dir / "manifest.csv")
    pool = {row["path"] for row in manifest if row["split"] == "train"}
    tested = {row["path"] for row in manifest if row["split"] == "test"}
    assert len(pool) + len(tested) == 38
    held_out: Counter[str] = Counter()
    for fold in range(1, NUM_FOLDS + 1):
        rows = read_csv(result.run_dir / "folds" / str(fold) / "manifest.csv")
        assert {row["path"] for row in rows if row["split"] == "test"} == tested
        val = {row["path"] for row in rows if row["split"] == "val"}
        train = {row["path"] for row in rows if row["split"] == "train"}
        assert train == pool - val
        assert {row["label"] for row in rows if row["split"] == "val"} == set(
            load_model(result.run_dir).card.classes
        ), "stratified"
        held_out.update(val)
    assert held_out == dict.fromkeys(pool, 1)


def test_out_of_fold_predictions_are_those_of_the_fold_that_holds_the_image_out(
    result: FitResult, insects: Path
) -> None:
    rows = read_csv(result.run_dir / "out_of_fold.csv")
    for fold in range(1, NUM_FOLDS + 1):
        mine = [row for row in rows if row["fold"] == str(fold)]
        predictor = Predictor(load_model(result.run_dir / "folds" / str(fold)), device="cpu")
        expected = predictor.predict_proba([insects / row["path"] for row in mine])
        classes = predictor.card.classes
        found = torch.tensor([[float(row[f"p {name}"]) for name in classes] for row in mine])
        assert torch.allclose(found, expected, atol=2e-6)
        assert [row["predicted"] for row in mine] == [classes[i] for i in expected.argmax(dim=1)]


def test_summary_has_the_statistics_of_the_folds_and_of_all_images(result: FitResult) -> None:
    summary = json.loads((result.run_dir / "cross_validation.json").read_text())
    assert summary == result.cross_validation
    rows = read_csv(result.run_dir / "out_of_fold.csv")
    by_fold = {str(fold["fold"]): fold for fold in summary["folds"]}
    accuracies = []
    for fold, entry in by_fold.items():
        mine = [row["predicted"] == row["label"] for row in rows if row["fold"] == fold]
        accuracies.append(fmean(mine))
        assert entry["num_val"] == len(mine)
        assert entry["num_train"] == len(rows) - len(mine)
        assert entry["metrics"]["val"]["accuracy"] == pytest.approx(accuracies[-1])
        chosen = entry["validation_choices"]
        assert ("the temperature" in chosen) == entry["is_calibrated"]
        assert chosen
    page = (result.run_dir / "bundle" / "README.md").read_text(encoding="utf-8")
    assert page.count("The held-out images of each fold also chose ") == 1
    statistics = summary["metrics"]["accuracy"]
    assert statistics["values"] == pytest.approx(accuracies)
    assert statistics["mean"] == pytest.approx(fmean(accuracies))
    assert statistics["std"] == pytest.approx(np.std(accuracies, ddof=1))
    low, high = statistics["interval"]
    assert low <= fmean(accuracies) <= high
    pooled = fmean(row["predicted"] == row["label"] for row in rows)
    assert result.metrics["out_of_fold"]["accuracy"] == pytest.approx(pooled)
    assert summary["out_of_fold"]["num_images"] == len(rows)


def test_ensemble_is_the_mean_of_the_folds_and_is_evaluated_on_test(
    result: FitResult, insects: Path
) -> None:
    tested = [row for row in read_csv(result.run_dir / "manifest.csv") if row["split"] == "test"]
    paths = [insects / row["path"] for row in tested]
    folds = [result.run_dir / "folds" / str(fold) for fold in range(1, NUM_FOLDS + 1)]
    members = [Predictor(load_model(fold), device="cpu") for fold in folds]
    mean = torch.stack([member.predict_proba(paths) for member in members]).mean(dim=0)
    model = Predictor(load_model(result.run_dir), device="cpu")
    assert torch.allclose(model.predict_proba(paths), mean, atol=1e-6)
    labels = [model.card.classes.index(row["label"]) for row in tested]
    accuracy = float((mean.argmax(dim=1) == torch.tensor(labels)).float().mean())
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy)
    evaluated = finetune.evaluate(result.run_dir)
    assert evaluated.split is Split.TEST
    assert evaluated.evaluation.metrics["accuracy"] == pytest.approx(accuracy)
    facts = model.card.facts
    assert (
        facts["cross_validation"]["metrics"]
        == json.loads((result.run_dir / "cross_validation.json").read_text())["metrics"]
    )
    assert sum(facts["train_images"].values()) == 38 - len(tested)


def test_features_of_later_folds_come_from_the_cache(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    computed: list[int] = []

    class Probes(RecordingReporter):
        def show_probe(self, result: Any) -> None:
            computed.append(result["num_images_computed"])

    finetune.fit(build_probe_config(insects, tmp_path), reporter=Probes())
    assert computed == [38, 0, 0]


def test_groups_and_duplicates_stay_in_one_fold(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    lines = ["path,label,group"]
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for image in range(12):
            file = root / name / f"{image:02}.png"
            seed = 100 * number + (image if image > 1 else 0)  # 0 and 1 are duplicates
            create_noise(seed=seed, width=40, height=40).save(file)
            lines.append(f"{name}/{image:02}.png,{name},{f'{name}-{image // 6}' * (image >= 6)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    config = build_run_config(root / "labels.csv", tmp_path / "run", unfreeze__name="all")
    finetune.fit(config)
    fold_of = {row["path"]: row["fold"] for row in read_csv(tmp_path / "run" / "folds.csv")}
    for name in ("cat", "dog"):
        assert len({fold_of[f"{name}/{image:02}.png"] for image in range(6, 12)}) == 1
        assert fold_of[f"{name}/00.png"] == fold_of[f"{name}/01.png"]
    assert set(fold_of.values()) == {"1", "2", "3"}


def test_given_validation_split_is_divided_and_test_split_kept(
    animals: Path, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    config = build_run_config(animals, tmp_path / "run", trainer__epochs=1)
    finetune.fit(config, reporter=reporter)
    assert any("15 images of the val split are divided" in note for note in reporter.notes)
    rows = read_csv(tmp_path / "run" / "folds.csv")
    assert len(rows) == 39
    folds = {row["fold"] for row in rows if row["path"].startswith("val/")}
    assert folds == {"1", "2", "3"}


def test_seed_changes_the_folds_and_nothing_else_does(insects: Path, tmp_path: Path) -> None:
    def read_folds(name: str, **settings: Any) -> list[dict[str, str]]:
        config = build_run_config(insects, tmp_path / name, **settings)
        finetune.fit(config)
        return read_csv(tmp_path / name / "folds.csv")

    fast = {"trainer__epochs": 1, "cross_validation__fold": 1}
    one = read_folds("one", **fast)
    assert read_folds("two", optim__lr=0.5, **fast) == one
    assert read_folds("three", seed=1, **fast) != one


def test_stop_after_the_last_fold_names_the_command_that_resumes(result: FitResult) -> None:
    reporter = InterruptingReporter("evaluating on test")
    with pytest.raises(StopRequest):
        finetune.resume(result.run_dir, reporter=reporter)
    assert reporter.notes[-1] == f"Stopped. Resume with: finetune fit --resume {result.run_dir}"


def test_resumed_with_more_epochs_trains_every_fold_longer(insects: Path, tmp_path: Path) -> None:
    run = finetune.fit(build_run_config(insects, tmp_path / "run")).run_dir
    before = (run / "out_of_fold.csv").read_text()
    unchanged = finetune.resume(run)
    assert unchanged.cross_validation is not None
    assert (run / "out_of_fold.csv").read_text() == before
    finetune.resume(run, assignments={"trainer.epochs": 3})
    for fold in range(1, NUM_FOLDS + 1):
        assert [row["epoch"] for row in read_rows(run / "folds" / str(fold))] == ["1", "2", "3"]
    assert (run / "out_of_fold.csv").read_text() != before


def test_one_fold_after_the_other_in_jobs_of_their_own_equals_all_at_once(
    result: FitResult, insects: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for fold in (2, 1, 3):
        config = build_run_config(
            insects, run, data__test_fraction=0.2, resume="auto", cross_validation__fold=fold
        )
        part = finetune.fit(config)
        assert part.run_dir.name == str(fold)
        assert not (run / "bundle").exists()
    config = build_run_config(insects, run, data__test_fraction=0.2, resume="auto")
    finetune.fit(config)
    for name in ("out_of_fold.csv", "cross_validation.json", "manifest.csv"):
        assert (run / name).read_bytes() == (result.run_dir / name).read_bytes()


def test_label_errors_of_the_folds_are_in_the_audit(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    for number, name in enumerate(("blue", "red")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for image in range(24):
            pixels = random.integers(0, 90, (32, 32, 3))
            is_wrong = name == "blue" and image == 7
            pixels[..., 2 - 2 * (number ^ is_wrong)] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image:02}.png")
    reporter = RecordingReporter()
    finetune.fit(build_probe_config(tmp_path / "photos", tmp_path), reporter=reporter)
    findings = read_csv(tmp_path / "run" / "audit.csv")
    errors = [row["path"] for row in findings if row["finding"] == "label error"]
    assert errors[:1] == ["blue/07.png"]
    note = next(note for note in reporter.notes if ": blue/07.png is labelled" in note)
    assert "by folds that predict" in note
    check = json.loads((tmp_path / "run" / "audit.json").read_text())["label_check"]
    assert check["num_images"] == 48
    assert check["accuracy"] <= 47 / 48 + 1e-4, "one label is wrong"


@pytest.mark.parametrize(
    ("settings", "error", "parts"),
    [
        (
            {"cross_validation__num_folds": 11}, DataError,
            ["'wasp, red' (10) has fewer images than the 11 folds", "--folds 10"],
        ),
        (
            {"data__val_fraction": 0.1}, ConfigError,
            ["data.val_fraction=0.1 cannot apply to cross_validation.num_folds=3"],
        ),
        (
            {"cross_validation__final": "refit", "probe__enabled": "on",
             "imbalance__strategy": "crt"},
            ConfigError,
            ["cross_validation.final=refit cannot apply to imbalance.head_rebalancing=crt"],
        ),
    ],
)  # fmt: skip
def test_contradicting_settings_are_refused(
    settings: dict[str, Any],
    error: type[Exception],
    parts: list[str],
    insects: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as raised:
        finetune.fit(build_run_config(insects, tmp_path / "run", **settings))
    for part in parts:
        assert part in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_one_fold_without_the_folder_of_all_is_refused(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = build_run_config(insects, tmp_path / "run", cross_validation__fold=2)
    with pytest.raises(ConfigError, match=r"fold=2 .*--output"):
        finetune.fit(replace_values(config, {"output": None}))
    assert not (tmp_path / "runs").exists()


def test_range_test_of_folds_is_refused(insects: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lr-find .* cross_validation.num_folds=3"):
        find_learning_rate(build_run_config(insects, tmp_path / "run"))


def test_plan_writes_nothing_and_tells_the_folds(insects: Path, tmp_path: Path) -> None:
    plan = finetune.plan_fit(build_run_config(insects, tmp_path / "run"))
    assert plan["cross_validation"]["num_held_out"] == [13, 13, 12]
    assert not (tmp_path / "run").exists()
