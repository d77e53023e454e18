"""Heads on earlier stages of the backbone, on the images and folds of the probe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from finetune.cli.main import run as run_command
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.features.views import ViewSpec
from finetune.probe.linear_probe import fit_probe
from finetune.probe.stage_probes import StageProbes, probe_stages
from finetune.types import Reporter
from tests.support.helpers import list_tree
from tests.support.processes import open_group, run_on_ranks
from tests.support.runs import create_small_training, write_photos, write_weights
from tests.support.wandb_file import read_offline_runs

CPU = torch.device("cpu")


class _Extractor:
    """Widths and stages of an extractor, without a network."""

    def __init__(self, *widths: int) -> None:
        from finetune.models.stage_outputs import Stage

        self.stage_widths = widths
        self.extractor = self
        self.stages = [Stage(f"stage{i}", i + 2, "") for i in range(len(widths))]


def make_features(num_images: int, *, informative: int) -> tuple[Any, Any, NDArray[np.int64]]:
    """Return last features and means of two stages (3 and 4 columns), one of them informative."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(num_images) % 2)
    tables = [random.normal(size=(num_images, width)).astype(np.float32) for width in (5, 3, 4)]
    tables[informative][:, 1] += 3 * labels
    return tables[0], np.concatenate(tables[1:], axis=1), labels


def probe(*, informative: int, num_images: int = 200, **options: Any) -> StageProbes:
    last, means, labels = make_features(num_images, informative=informative)
    ones = np.ones(num_images)
    head = fit_head([last], labels, ones, num_classes=2, **options.pop("head", {}))
    result = probe_stages(
        _Extractor(3, 4),  # type: ignore[arg-type]
        [[last], [means]],
        labels,
        ones,
        cv_head=head,
        last_name="layer4",
        **options,
    )
    assert result is not None
    return result


def test_probe_stages_finds_the_stage_that_separates_the_classes() -> None:
    last, middle, first = (probe(informative=index) for index in range(3))
    assert last.last.accuracy > 0.85
    assert last.loss_ratio < 0.6
    assert last.accuracy_lead > 0.3
    assert middle.best_earlier.name == "stage0"
    assert first.best_earlier.name == "stage1"
    assert middle.loss_ratio > 1
    assert [score.depth for score in first.scores] == [1, 2, 3]
    assert [score.num_features for score in first.scores] == [5, 3, 4]


def test_probe_stages_on_the_last_features_equals_the_probe() -> None:
    last, _, labels = make_features(200, informative=0)
    head = fit_head([last], labels, np.ones(200), num_classes=2)
    result = probe(informative=0)
    assert result.last.loss == pytest.approx(head.held_out_loss, rel=1e-6)
    assert result.last.accuracy == pytest.approx(head.held_out_accuracy)


def test_probe_stages_has_the_standard_error_of_the_paired_difference() -> None:
    result = probe(informative=0)
    assert result.loss_difference < 0
    error = result.loss_standard_error
    assert error is not None
    assert 0 < error < -result.loss_difference / 2
    last, _, labels = make_features(200, informative=0)
    head = fit_head([last], labels, np.ones(200), num_classes=2)
    rows = np.arange(len(head.held_out_rows))
    losses = -head.held_out_probabilities.log()[rows, labels[head.held_out_rows]].numpy()
    # the other head guesses, with losses near log 2 for all images
    assert error == pytest.approx(losses.std(ddof=1) / 200**0.5, rel=0.15)
    assert result.to_json()["loss_difference_standard_error"] == error
    noise = probe(informative=0, num_images=20)
    assert noise.loss_standard_error is not None
    assert noise.loss_standard_error > error


def test_probe_stages_with_a_logit_offset_equals_the_accuracy_of_the_probe() -> None:
    last, means, labels = make_features(200, informative=0)
    ones, offset = np.ones(200), torch.tensor([2.5, 0.0])
    head = fit_head([last], labels, ones, num_classes=2, logit_offset=offset)
    result = probe_stages(
        _Extractor(3, 4),  # type: ignore[arg-type]
        [[last], [means]],
        labels,
        ones,
        cv_head=head,
        last_name="layer4",
        logit_offset=offset,
    )
    assert result is not None
    assert result.last.accuracy == pytest.approx(head.held_out_accuracy)
    assert result.last.accuracy != pytest.approx(probe(informative=0).last.accuracy)


def test_probe_stages_of_many_images_uses_a_sample_and_all_folds() -> None:
    result = probe(informative=0, num_images=400, max_images=100)
    assert result.num_images == 100
    assert result.last.accuracy > 0.8
    single_fold = probe(informative=0, num_images=400, head={"max_images_for_all_folds": 100})
    assert single_fold.last.accuracy > 0.8


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    return tmp_path


def create_training(place: Path, **settings: Any) -> Any:
    paths = {"model__weights": str(place / "weights.pth"), "data__cache": str(place / "cache")}
    return create_small_training(place / "photos", **{**paths, **settings})


def extract(training: Any, *, rendezvous: Any = None) -> tuple[list[list[Any]], int]:
    """Return all outputs for the training images and their flips, and the number computed."""
    plan = training.probe.extraction
    extractor = CachedFeatureExtractor(
        create_feature_extractor(
            training.module.classifier.eval().network, with_stages=plan.with_stages
        ),
        plan,
        device=CPU,
        rendezvous=rendezvous,
        reporter=Reporter(),
    )
    outputs = extractor.extract(training.probe.train.paths, ViewSpec(flipped=True))
    return [[view[:] for view in views] for views in outputs], extractor.num_computed


def test_extract_with_stages_leaves_features_as_they_are(place: Path) -> None:
    (plain,), _ = extract(create_training(place, probe__stages="off"))
    training = create_training(place, data__cache=str(place / "other"))
    (features, means), _ = extract(training)
    for actual, expected in zip(features, plain, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert len(means) == 1, "means are stored for the evaluation view alone"
    assert means[0].shape[0] == 24
    assert np.isfinite(means[0]).all()


def test_extract_with_stages_adds_them_to_stored_features_once(place: Path) -> None:
    _, first = extract(create_training(place, probe__stages="off"))
    _, added = extract(create_training(place))
    _, again = extract(create_training(place))
    _, without = extract(create_training(place, probe__stages="off"))
    assert (first, added, again, without) == (24, 24, 0, 0)


def extract_on_rank(rank: int, place: Path, settings: dict[str, Any]) -> Any:
    training = create_training(place, **settings)
    with open_group() as rendezvous:
        return extract(training, rendezvous=rendezvous)


@pytest.mark.slow
def test_extract_with_stages_on_several_ranks_is_bit_identical_to_one(place: Path) -> None:
    (_, expected), _ = extract(create_training(place))
    settings = {"trainer__devices": 2, "data__cache": str(place / "other")}
    (((_, actual), _), _) = run_on_ranks(2, extract_on_rank, place, settings)
    np.testing.assert_array_equal(actual[0], expected[0])


@pytest.mark.runs
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_fit_probe_has_the_stages_of_the_network(place: Path, backbone: str) -> None:
    weights = place / f"{backbone}.pth"
    write_weights(weights, backbone)
    size = 160 if backbone == "test_vit" else 32
    training = create_training(
        place, model__backbone=backbone, model__weights=str(weights), data__image_size=size
    )
    assert training.probe is not None
    result = fit_probe(
        training.module.classifier,
        training.probe,
        device=CPU,
        rendezvous=None,
        reporter=Reporter(),
    )
    assert result is not None
    assert result.stages is not None
    assert result.stages.last.loss == pytest.approx(result.cv_head.held_out_loss, rel=1e-3)
    assert len(result.stages.scores) >= 4
    assert isinstance(result.cv_head, CrossValidatedHead)


@pytest.mark.runs
def test_fit_shows_stages_in_json_file_and_wandb(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "fit", str(place / "photos"), "--weights", str(place / "weights.pth"), "--json",
        "--unfreeze", "linear_probe", "--output", str(place / "run"), "--wandb", "offline",
        "data.image_size=32", "data.num_workers=0", "model.backbone=test_resnet",
        "trainer.accelerator=cpu", "trainer.precision=32-true",
    ]  # fmt: skip
    assert run_command(command) == 0
    output = capsys.readouterr()
    stages = json.loads(output.out)["stages"]
    assert stages["scores"][0]["name"] == "layer4"
    stored = json.loads((place / "run" / "stages.json").read_text())
    assert stored.items() >= stages.items()
    assert "Heads on earlier stages" in " ".join(output.err.split())
    (part,) = read_offline_runs(place / "run")
    assert part.summary["stages/accuracy_lead"] == pytest.approx(stages["accuracy_lead"])
    off = [*command, "probe.stages=off", "--wandb", "off", "--output", str(place / "off")]
    assert run_command(off) == 0
    assert json.loads(capsys.readouterr().out)["stages"] is None
    assert "off/stages.json" not in list_tree(place)
