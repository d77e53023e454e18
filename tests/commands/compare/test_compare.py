"""Tests of ``finetune.commands.compare.compare``, also against a following fit."""

import csv
import re
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.commands.compare.backbone_result import BackboneResult
from finetune.commands.compare.compare import compare
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.errors import ConfigError, ModelError, RunFolderError, StorageError
from finetune.models.costs import throughput as forward_cost
from finetune.models.costs.throughput import count_macs
from finetune.models.pretrained.weights_folder import find_weights
from finetune.probe.cross_validation import fit_head
from tests.support.helpers import RecordingReporter, list_tree
from tests.support.runs import write_photos, write_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

BACKBONES = ("test_resnet", "test_vit")


class ProbeRecorder(RecordingReporter):
    """Recorder that also keeps the results of probes."""

    def __init__(self) -> None:
        super().__init__()
        self.probes: list[Mapping[str, Any]] = []

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Append the result."""
        self.probes.append(result)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals", num_train=10)


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights of two backbones, and a file with the weights of another architecture."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "test_resnet-0123abcd.pth")
    write_weights(folder / "test_vit.pth", "test_vit")
    write_weights(folder / "test_convnext.pth", "test_efficientnet")
    return folder


@pytest.fixture(autouse=True)
def _isolate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(forward_cost, "_MAX_BATCH_SECONDS", 0.02)
    monkeypatch.setattr(forward_cost, "_MAX_TOTAL_SECONDS", 0.02)
    # fitting noise takes long, and none of these tests depends on the penalty
    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", partial(fit_head, penalties=(0.1,)))


def config_of(data: Path, **assignments: object) -> Config:
    """Return a config as for a fit; ``section__key`` names a config key."""
    small = {
        "data.num_workers": 0,
        "data.image_size": 32,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config({}, assignments={"data.path": str(data), **small, **given})


def fit_best(config: Config, row: BackboneResult, run: Path, **more: object) -> ProbeRecorder:
    """Fit the backbone of a row as ``compare`` suggests, with the same settings."""
    tree = config.model_dump(exclude_unset=True)
    tree["model"] = {**tree.get("model", {}), "backbone": row.backbone, "weights": row.weights}
    recorder = ProbeRecorder()
    given = {key.replace("__", "."): value for key, value in more.items()}
    given = {"output": str(run), "report.enabled": "off", **given}
    finetune.fit(build_config(tree, assignments=given), reporter=recorder)
    return recorder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "seed": 3,
            "data__val_fraction": 0.4,
            "augment__name": "none",
            "model__pretrained_cfg": {"crop_pct": 1.0},
        },
        pytest.param(
            {"trainer__precision": "bf16-mixed", "imbalance__strategy": "class_weights"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"data__image_size": 64}, marks=pytest.mark.slow),
    ],
    ids=["plain", "split and preprocessing", "precision", "size"],
)
def test_fit_after_compare_reuses_features_and_metrics(
    settings: dict[str, Any], animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    data = animals / "train"  # without given splits
    config = config_of(data, **settings)
    result = compare(config, BACKBONES, weights=str(weights_dir))
    assert {row.backbone for row in result.rows} == set(BACKBONES)
    for row in result.rows:
        assert (row.num_images, row.num_computed) == (30, 30)
        recorder = fit_best(config, row, tmp_path / row.backbone, unfreeze__name="linear_probe")
        (probe,) = recorder.probes
        assert (probe["num_images"], probe["num_images_computed"]) == (30, 0)
        for name, value in row.metrics.items():
            assert probe["metrics"][name] == pytest.approx(value, abs=1e-6)
        assert row.metrics["accuracy"] == pytest.approx(row.is_correct.mean())


def test_full_fit_after_compare_reuses_features(
    animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    config = config_of(animals)
    (row,) = compare(config, ["test_resnet"], weights=str(weights_dir)).rows
    recorder = fit_best(config, row, tmp_path / "run", trainer__epochs=1, unfreeze__name="all")
    assert recorder.probes[0]["num_images_computed"] == 0
    again = compare(config, ["test_resnet"], weights=str(weights_dir)).rows[0]
    assert again.num_computed == 0
    assert again.metrics == row.metrics


def test_compare_cost_equals_plan_of_fit(animals: Path, weights_dir: Path) -> None:
    rows = compare(
        config_of(animals, data__image_size=64), BACKBONES, weights=str(weights_dir)
    ).rows
    for row in rows:
        assignments = {
            "model.backbone": row.backbone,
            "model.weights": row.weights,
            "data.image_size": 64,
            "unfreeze.name": "all",
        }
        plan = finetune.plan_fit(config_of(animals, **assignments))
        assert row.num_parameters == plan["model"]["num_parameters"]
        assert row.image_size == 64
        assert row.training_bytes is not None
        assert row.training_bytes / 1e9 == pytest.approx(plan["cost"]["memory_gb"]["total"])
        assert row.batch_size == plan["cost"]["micro_batch_size"]
        assert row.num_macs > 1e6
        assert row.images_per_second is not None
        assert row.images_per_second > 1


def test_compare_imbalanced_classes_sorts_by_macro_f1(
    animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    few = write_photos(tmp_path / "few", num_train=10)
    for file in sorted((few / "train" / "ant").iterdir())[4:]:
        file.unlink()
    assert compare(config_of(few), ["test_resnet"], weights=str(weights_dir)).monitor == "macro_f1"
    assert (
        compare(config_of(animals), ["test_resnet"], weights=str(weights_dir)).monitor == "accuracy"
    )


def test_compare_timm_folder_uses_its_preprocessing(
    animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    run = fit_best(
        config_of(animals),
        compare(config_of(animals), ["test_resnet"], weights=str(weights_dir)).rows[0],
        tmp_path / "runs" / "test_resnet",
        unfreeze__name="linear_probe",
    )
    assert run.probes
    (row,) = compare(config_of(animals), ["test_resnet"], weights=str(tmp_path / "runs")).rows
    assert row.weights == str(tmp_path / "runs" / "test_resnet")
    assert row.num_computed == 0, "same backbone and same preprocessing"


def test_compare_invalid_backbones_are_listed_before_reading_images(
    animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    names = ["test_resnet", "test_rsnet", "resnet18", "test_efficientnet_evos", "test_resnet"]
    (weights_dir / "test_efficientnet_evos.pth").touch()
    with pytest.raises(ModelError) as caught:
        compare(config_of(tmp_path / "no images"), names, weights=str(weights_dir))
    message = str(caught.value)
    assert message.startswith("2 of 4 backbones")
    assert "\n  test_rsnet: " in message
    assert re.search(r"\n  resnet18: .*'resnet18'", message)
    with pytest.raises(ModelError, match=r"'test_rsnet'.*'test_resnet'\?"):
        compare(config_of(animals), ["test_rsnet"])


def test_compare_nonlinear_head_raises_before_reading_images(
    weights_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny_vit_5m_224.pth").touch()
    (tmp_path / "efficientformer_l1.pth").touch()
    with pytest.raises(ModelError, match=r"'efficientformer_l1' .*linear"):
        compare(config_of(tmp_path / "none"), ["efficientformer_l1"], weights=str(tmp_path))


def test_compare_failed_backbone_is_listed_and_others_complete(
    animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    recorder = ProbeRecorder()
    names = ["test_convnext", *BACKBONES]
    file = tmp_path / "table.csv"
    result = compare(
        config_of(animals), names, weights=str(weights_dir), csv=file, reporter=recorder
    )
    assert {row.backbone for row in result.rows} == set(BACKBONES)
    (failed,) = result.failures
    assert (failed.backbone, failed.exit_code) == ("test_convnext", 4)
    assert str(weights_dir / "test_convnext.pth") in failed.reason
    assert recorder.warnings == [f"[1/3] test_convnext failed: {failed.reason}"]
    assert result.to_json()["failures"][0]["reason"] == failed.reason
    lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    assert [line["backbone"] for line in lines] == [r.backbone for r in result.rows] + [
        "test_convnext"
    ]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried.\nmore"), 9, "Out of memory: CUDA"),
        (RuntimeError("a layer does not fit"), 1, "RuntimeError: a layer does not fit."),
    ],
)
def test_compare_foreign_error_is_one_line_failure(
    error: Exception,
    code: int,
    reason: str,
    animals: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_error(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("finetune.commands.compare.compare.count_macs", raise_error)
    result = compare(config_of(animals), ["test_resnet"], weights=str(weights_dir))
    assert result.rows == ()
    assert result.failures[0].exit_code == code
    assert result.failures[0].reason.startswith(reason)
    assert "\n" not in result.failures[0].reason


def test_compare_stopped_keeps_computed_features(
    animals: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **more: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return count_macs(*args, **more)

    recorder = ProbeRecorder()
    with monkeypatch.context() as patch:
        patch.setattr("finetune.commands.compare.compare.count_macs", interrupt)
        with pytest.raises(signals.StopRequest):
            compare(config_of(animals), BACKBONES, weights=str(weights_dir), reporter=recorder)
    assert "cached" in recorder.notes[-1]
    rows = compare(config_of(animals), BACKBONES, weights=str(weights_dir)).rows
    assert {row.backbone: row.num_computed for row in rows} == {"test_resnet": 0, "test_vit": 45}


@pytest.mark.parametrize(
    ("assignments", "parts"),
    [
        ({"trainer__epochs": 3, "optim__lr": 0.1}, ["optim.lr", "trainer.epochs"]),
        ({"unfreeze__name": "all"}, ["unfreeze.name"]),
        ({"augment__mixup": 0.2}, ["augment.mixup"]),
        ({"probe__enabled": "off"}, ["probe.enabled"]),
        ({"model__backbone": "vgg16"}, ["model.backbone", "--backbones"]),
        ({"model__weights": "x.pth"}, ["model.weights", "--weights"]),
        ({"imbalance__strategy": "crt"}, ["crt", "tau_norm"]),
    ],
)
def test_compare_unused_config_key_raises_config_error(
    assignments: dict[str, Any], parts: list[str], animals: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(config_of(animals, **assignments), ["test_resnet"])
    assert [part for part in parts if part not in str(caught.value)] == []


def test_compare_invalid_arguments_raise_before_any_work(
    animals: Path, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(animals)
    with pytest.raises(ConfigError, match="--backbones"):
        compare(config, [])
    with pytest.raises(ConfigError, match="--weights random"):
        compare(config, ["test_resnet"], weights="random")
    with pytest.raises(ModelError, match=r"--weights .*nowhere"):
        compare(config, ["test_resnet"], weights=str(tmp_path / "nowhere"))
    file = find_weights(weights_dir, "test_vit")
    with pytest.raises(ModelError, match=r"--weights .*test_vit\.pth"):
        compare(config, ["test_vit"], weights=str(file))
    with pytest.raises(RunFolderError, match=r"--csv .*\.csv"):
        compare(config, ["test_vit"], weights=str(weights_dir), csv=tmp_path)
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match="--csv"):
        compare(config, ["test_vit"], weights=str(weights_dir), csv=tmp_path / "taken" / "a.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match=r"finetune compare .* 2"):
        compare(config, ["test_vit"], weights=str(weights_dir))
    assert list_tree(tmp_path) == ["taken"]


def test_compare_unreachable_hub_weights_raise_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        compare(config_of(tmp_path / "none"), ["test_resnet", "test_vit"])
    assert str(caught.value).count("HF_HUB_OFFLINE") == 2
