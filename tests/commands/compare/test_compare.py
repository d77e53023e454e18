"""Backbones compared on the same images: as fit would see them, and found again by it."""

import csv
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.commands.compare.compare import compare
from finetune.commands.compare.result import BackboneResult
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.errors import ConfigError, ModelError, RunFolderError, StorageError
from finetune.models import throughput as forward_cost
from finetune.models.throughput import count_macs
from finetune.models.weights_folder import find_weights
from finetune.probe.cross_validation import fit_head
from tests.support.helpers import Recorder, everything
from tests.support.runs import write_photos, write_weights

BACKBONES = ("test_resnet", "test_vit")


class Watcher(Recorder):
    """Keeps what the probe of a fit says, too."""

    def __init__(self) -> None:
        super().__init__()
        self.probes: list[Mapping[str, Any]] = []

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Keep it."""
        self.probes.append(result)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals", num_train=10)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of weights: two backbones', and one that is another's in truth."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "test_resnet-0123abcd.pth")
    write_weights(folder / "test_vit.pth", "test_vit")
    write_weights(folder / "test_convnext.pth", "test_efficientnet")
    return folder


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(forward_cost, "_MAX_BATCH_SECONDS", 0.02)
    monkeypatch.setattr(forward_cost, "_MAX_TOTAL_SECONDS", 0.02)
    # noise takes long to be fitted to, and none of these tests is about the penalty
    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", partial(fit_head, penalties=(0.1,)))


def config_of(data: Path, **assignments: object) -> Config:
    """Return a config as for a fit; ``section__key`` names a key of the tree."""
    small = {
        "data.num_workers": 0,
        "data.image_size": 32,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config({}, assignments={"data.path": str(data), **small, **given})


def fitted(config: Config, row: BackboneResult, run: Path, **more: object) -> Watcher:
    """Fit as ``compare`` advises, with the same settings."""
    tree = config.model_dump(exclude_unset=True)
    tree["model"] = {**tree.get("model", {}), "backbone": row.backbone, "weights": row.weights}
    watcher = Watcher()
    given = {key.replace("__", "."): value for key, value in more.items()}
    finetune.fit(build_config(tree, assignments={"output": str(run), **given}), reporter=watcher)
    return watcher


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
def test_the_fit_that_follows_asks_nothing_and_finds_the_same(
    settings: dict[str, Any], animals: Path, shelf: Path, tmp_path: Path
) -> None:
    data = animals / "train"  # which has no split of its own
    config = config_of(data, **settings)
    result = compare(config, BACKBONES, weights=str(shelf))
    assert {row.backbone for row in result.rows} == set(BACKBONES)
    for row in result.rows:
        assert (row.num_images, row.num_computed) == (30, 30)
        watcher = fitted(config, row, tmp_path / row.backbone, unfreeze__name="linear_probe")
        (probe,) = watcher.probes
        assert (probe["num_images"], probe["num_images_computed"]) == (30, 0)
        for name, value in row.metrics.items():
            assert probe["metrics"][name] == pytest.approx(value, abs=1e-6)
        assert row.metrics["accuracy"] == pytest.approx(row.is_correct.mean())


def test_a_whole_fit_begins_with_the_same_answers(
    animals: Path, shelf: Path, tmp_path: Path
) -> None:
    config = config_of(animals)
    (row,) = compare(config, ["test_resnet"], weights=str(shelf)).rows
    watcher = fitted(config, row, tmp_path / "run", trainer__epochs=1, unfreeze__name="all")
    assert watcher.probes[0]["num_images_computed"] == 0
    again = compare(config, ["test_resnet"], weights=str(shelf)).rows[0]
    assert again.num_computed == 0
    assert again.metrics == row.metrics


def test_what_a_backbone_costs_is_what_the_plan_of_a_fit_says(animals: Path, shelf: Path) -> None:
    rows = compare(config_of(animals, data__image_size=64), BACKBONES, weights=str(shelf)).rows
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
        assert round(row.training_bytes / 1e9, 3) == plan["cost"]["memory_gb"]["total"]
        assert row.batch_size == plan["cost"]["micro_batch_size"]
        assert row.num_macs > 1e6
        assert row.images_per_second is not None
        assert row.images_per_second > 1


def test_unequal_classes_are_judged_by_macro_f1(animals: Path, shelf: Path, tmp_path: Path) -> None:
    few = write_photos(tmp_path / "few", num_train=10)
    for file in sorted((few / "train" / "ant").iterdir())[4:]:
        file.unlink()
    assert compare(config_of(few), ["test_resnet"], weights=str(shelf)).monitor == "macro_f1"
    assert compare(config_of(animals), ["test_resnet"], weights=str(shelf)).monitor == "accuracy"


def test_a_timm_folder_is_taken_with_its_preprocessing(
    animals: Path, shelf: Path, tmp_path: Path
) -> None:
    run = fitted(
        config_of(animals),
        compare(config_of(animals), ["test_resnet"], weights=str(shelf)).rows[0],
        tmp_path / "runs" / "test_resnet",
        unfreeze__name="linear_probe",
    )
    assert run.probes
    (row,) = compare(config_of(animals), ["test_resnet"], weights=str(tmp_path / "runs")).rows
    assert row.weights == str(tmp_path / "runs" / "test_resnet")
    assert row.num_computed == 0, "the same backbone and the same preprocessing"


def test_all_that_can_be_wrong_with_names_and_files_is_said_at_once_before_any_image(
    animals: Path, shelf: Path, tmp_path: Path
) -> None:
    names = ["test_resnet", "test_rsnet", "resnet18", "test_efficientnet_evos", "test_resnet"]
    (shelf / "test_efficientnet_evos.pth").touch()
    with pytest.raises(ModelError) as caught:
        compare(config_of(tmp_path / "no images"), names, weights=str(shelf))
    message = str(caught.value)
    assert message.startswith(
        "2 of 4 backbones cannot be compared:\n  test_rsnet: Unknown backbone"
    )
    assert "\n  resnet18: " in message
    assert "holds no weights for 'resnet18'" in message
    with pytest.raises(ModelError, match=r"^Unknown backbone 'test_rsnet'. Did you mean"):
        compare(config_of(animals), ["test_rsnet"])


def test_a_head_that_is_not_linear_is_found_before_any_image(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny_vit_5m_224.pth").touch()
    (tmp_path / "efficientformer_l1.pth").touch()
    with pytest.raises(ModelError, match="'efficientformer_l1' has a classifier that is not one"):
        compare(config_of(tmp_path / "none"), ["efficientformer_l1"], weights=str(tmp_path))


def test_what_fails_in_the_work_is_a_row_with_its_reason_and_the_rest_goes_on(
    animals: Path, shelf: Path, tmp_path: Path
) -> None:
    watcher = Watcher()
    names = ["test_convnext", *BACKBONES]
    file = tmp_path / "table.csv"
    result = compare(config_of(animals), names, weights=str(shelf), csv=file, reporter=watcher)
    assert {row.backbone for row in result.rows} == set(BACKBONES)
    (failed,) = result.failures
    assert (failed.backbone, failed.exit_code) == ("test_convnext", 4)
    assert str(shelf / "test_convnext.pth") in failed.reason
    assert watcher.warnings == [f"1 of 3  test_convnext failed: {failed.reason}"]
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
def test_what_libraries_raise_is_told_in_a_line(
    error: Exception,
    code: int,
    reason: str,
    animals: Path,
    shelf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("finetune.commands.compare.compare.count_macs", broken)
    result = compare(config_of(animals), ["test_resnet"], weights=str(shelf))
    assert result.rows == ()
    assert result.failures[0].exit_code == code
    assert result.failures[0].reason.startswith(reason)
    assert "\n" not in result.failures[0].reason


def test_what_was_computed_before_a_stop_is_kept(
    animals: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **more: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return count_macs(*args, **more)

    watcher = Watcher()
    with monkeypatch.context() as patch:
        patch.setattr("finetune.commands.compare.compare.count_macs", stopped)
        with pytest.raises(signals.StopRequest):
            compare(config_of(animals), BACKBONES, weights=str(shelf), reporter=watcher)
    assert "What was computed is kept" in watcher.notes[-1]
    rows = compare(config_of(animals), BACKBONES, weights=str(shelf)).rows
    assert {row.backbone: row.num_computed for row in rows} == {"test_resnet": 0, "test_vit": 45}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            {"trainer__epochs": 3, "optim__lr": 0.1},
            "optim.lr, trainer.epochs cannot apply to",
        ),
        ({"unfreeze__name": "all"}, "unfreeze.name cannot apply to a comparison"),
        ({"augment__mixup": 0.2}, "augment.mixup cannot apply to a comparison"),
        ({"probe__enabled": "off"}, "probe.enabled cannot apply to a comparison"),
        ({"model__backbone": "vgg16"}, "model.backbone cannot apply to a comparison. Use --backb"),
        ({"model__weights": "x.pth"}, "model.weights cannot apply to a comparison. Use --weights"),
    ],
)
def test_keys_that_nothing_here_depends_on_are_refused(
    assignments: dict[str, Any], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        compare(config_of(animals, **assignments), ["test_resnet"])


def test_what_a_comparison_cannot_be_is_refused_before_any_work(
    animals: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(animals)
    with pytest.raises(ConfigError, match=r"^No backbones: name some"):
        compare(config, [])
    with pytest.raises(ConfigError, match=r"^--weights random cannot apply"):
        compare(config, ["test_resnet"], weights="random")
    with pytest.raises(ModelError, match=r"nowhere does not exist. Name a folder that holds"):
        compare(config, ["test_resnet"], weights=str(tmp_path / "nowhere"))
    file = find_weights(shelf, "test_vit")
    with pytest.raises(ModelError, match=r"test_vit.pth is a file. Name a folder that holds"):
        compare(config, ["test_vit"], weights=str(file))
    with pytest.raises(RunFolderError, match=r"^--csv .* is a folder; name a .csv file"):
        compare(config, ["test_vit"], weights=str(shelf), csv=tmp_path)
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match="Choose another place for --csv"):
        compare(config, ["test_vit"], weights=str(shelf), csv=tmp_path / "taken" / "a.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match="finetune compare is one process, but environment star"):
        compare(config, ["test_vit"], weights=str(shelf))
    assert everything(tmp_path) == ["taken"]


def test_weights_of_the_hub_that_are_out_of_reach_are_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        compare(config_of(tmp_path / "none"), ["test_resnet", "test_vit"])
    assert str(caught.value).count("HF_HUB_OFFLINE keeps this machine from the network") == 2
