"""Probes that train the last stage: trained parameters, best epoch, caching and refusals."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from finetune.builders import Training
from finetune.data.images.decode import open_image
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError, StorageError, TrainingError
from finetune.models.graph_split import SplitNetwork, split_last_groups
from finetune.probe import last_stage as last_stage_module
from finetune.probe.linear_probe import ProbeResult, fit_probe
from finetune.types import Reporter
from tests.support.networks import copy_state, find_changed
from tests.support.runs import create_small_training, force_last_stage_improvement


def training_in(place: Path, **settings: Any) -> Training:
    own: dict[str, Any] = {
        "model__weights": str(place / "weights.pth"),
        "data__cache": str(place / "cache"),
        "trainer__epochs": "auto",
        "unfreeze__name": "linear_probe",
        "probe__depth": 2,
        "trainer__monitor": "loss",
    }
    return create_small_training(place / "photos", **{**own, **settings})


def run_probe(training: Training) -> ProbeResult:
    assert training.probe is not None
    result = fit_probe(
        training.module.classifier,
        training.probe,
        device=torch.device("cpu"),
        rendezvous=None,
        reporter=Reporter(),
    )
    assert result is not None
    return result


def evaluate_network(training: Training) -> dict[str, float]:
    """Return the validation metrics of the whole network on the image files."""
    assert training.probe is not None
    val, transform = training.probe.val, EvalTransform(training.network.spec)
    pixels = [torch.from_numpy(transform(open_image(path)).pixels) for path in val.paths]
    with torch.no_grad():
        logits = training.module.eval()(torch.stack(pixels))
    labels = torch.from_numpy(val.labels)
    return {
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
    }


@pytest.fixture
def _poor_head(monkeypatch: pytest.MonkeyPatch) -> None:
    force_last_stage_improvement(monkeypatch)


@pytest.mark.usefixtures("_poor_head")
def test_fit_probe_trains_the_last_groups_only(place: Path) -> None:
    training = training_in(place, optim__lr=3e-3, optim__backbone_lr_scale=1)
    classifier = training.module.classifier
    before = copy_state(classifier.network)
    result = run_probe(training)
    assert result.last_stage_epochs
    groups = classifier.groups[:2]
    assert find_changed(before, classifier.network) == {
        name for group in groups for name in group.parameter_names
    }
    assert result.train_loss < 0.5, "a uniform prediction has log(3)"
    assert not any(parameter.grad is not None for parameter in classifier.parameters())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.usefixtures("_poor_head")
def test_fit_probe_metrics_are_those_of_the_trained_network(place: Path) -> None:
    training = training_in(place, optim__lr=3e-3, optim__backbone_lr_scale=1)
    result = run_probe(training)
    assert result.last_stage_epochs
    for name, value in evaluate_network(training).items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.runs
def test_fit_probe_no_epoch_beats_head_restores_weights(place: Path) -> None:
    head_only = training_in(place, probe__depth=1)
    run_probe(head_only)
    deeper = training_in(place, optim__lr=50.0, optim__backbone_lr_scale=1)
    result = run_probe(deeper)
    assert result.last_stage_epochs == 0
    assert result.metrics == result.head_metrics
    assert not find_changed(
        copy_state(head_only.module.classifier.network), deeper.module.classifier.network
    )


@pytest.mark.usefixtures("_poor_head")
def test_fit_probe_keeps_batch_norm_statistics_and_mode(place: Path) -> None:
    training = training_in(
        place, model__batch_norm="train", optim__lr=3e-3, optim__backbone_lr_scale=1
    )
    classifier = training.module.classifier
    before = copy_state(classifier.network)
    assert run_probe(training).last_stage_epochs
    assert not {n for n in find_changed(before, classifier.network) if "running" in n}
    assert classifier.batch_norm == "train"


@pytest.mark.runs
def test_fit_probe_reuses_cached_activations_of_the_same_depth(place: Path) -> None:
    assert run_probe(training_in(place)).num_computed == 39
    assert run_probe(training_in(place, optim__lr=1e-4, seed=5)).num_computed == 0
    assert run_probe(training_in(place, probe__depth=1)).num_computed == 0
    # another depth has other activations
    assert run_probe(training_in(place, probe__depth=3)).num_computed == 39


def test_fit_probe_out_of_memory_raises_training_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(last_stage_module, "iter_training_epochs", raise_out_of_memory)
    with pytest.raises(
        TrainingError,
        match=r"2 layer groups.*trainer\.accumulate_grad_batches.*probe\.depth=1",
    ):
        run_probe(training_in(place))


@pytest.mark.runs
def test_fit_probe_activations_exceed_cache_raises_storage_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.probe.features.cached_extractor.evict_to_fit", lambda *args, **kwargs: False
    )
    with pytest.raises(
        StorageError, match=r"kB .*cache\.max_gb=.*probe\.num_crops.*probe\.depth=1"
    ):
        run_probe(training_in(place))
    assert run_probe(training_in(place, probe__depth=1)).num_computed == 39


def test_cached_activations_take_precedence_over_cached_pixels(place: Path) -> None:
    both = {"unfreeze__name": "all", "trainer__epochs": 2, "data__cache": "auto"}
    wide = training_in(place, **both)
    assert wide.probe is not None
    assert wide.probe.last_stage is not None
    assert wide.cache is not None
    limit = (wide.probe.last_stage.num_bytes + wide.cache.num_bytes / 2) / 1e9
    narrow = training_in(place, cache__max_gb=limit, **both)
    assert narrow.cache is None
    assert re.search(r"kB of cached activations .*cache\.max_gb=", narrow.no_cache_reason)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe__depth": 99}, r"probe\.depth=99 cannot apply .*test_resnet.* 6 layer groups"),
        ({"probe__enabled": "off"}, r"probe\.depth=2 cannot apply to probe\.enabled=off"),
        (
            {"probe__depth": 1, "probe__last_stage_epochs": 3},
            r"probe\.last_stage_epochs=3 cannot apply to probe\.depth",
        ),
        (
            {"probe__enabled": "off", "probe__depth": 1, "probe__last_stage_epochs": 3},
            r"probe\.last_stage_epochs=3 cannot",
        ),
        (
            {"probe__last_stage_epochs": 0},
            r"probe\.last_stage_epochs=0 cannot apply to probe\.depth=2",
        ),
        ({"cache__max_gb": 1e-5}, r"probe\.depth=2 .*kB .*cache\.max_gb=1e-05.*probe\.num_crops"),
    ],
    ids=["too deep", "no probe", "neither", "no depth", "no epochs", "no room"],
)
def test_probe_depth_inapplicable_raises_config_error(
    settings: dict[str, Any], message: str, place: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        training_in(place, **settings)


def test_probe_depth_untraceable_network_raises_config_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.builders.probe_plan.split_last_groups", lambda *args: None)
    with pytest.raises(ConfigError, match=r"probe\.depth=2 cannot apply to .*test_resnet"):
        training_in(place)


def test_probe_depth_split_with_other_output_raises_config_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split_wrongly(network: nn.Module, depth: int) -> SplitNetwork:
        split = split_last_groups(network, depth)
        other = split_last_groups(timm.create_model("test_resnet", num_classes=3).eval(), depth)
        assert split is not None
        assert other is not None
        return SplitNetwork(split.trunk, other.last_stage, split.node_name)

    monkeypatch.setattr("finetune.builders.probe_plan.split_last_groups", split_wrongly)
    with pytest.raises(ConfigError, match=r"probe\.depth=2 cannot apply to .*test_resnet"):
        training_in(place)


def test_fit_probe_monitor_to_maximise_keeps_first_best_epoch(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_in(
        place, probe__last_stage_epochs=3, optim__lr=3e-3, optim__backbone_lr_scale=1,
        trainer__monitor="accuracy",
    )  # fmt: skip
    classifier = training.module.classifier
    # the head alone, each epoch, then the two metrics of the result
    scores = iter([0.4, 0.5, 0.9, 0.7, 0.9, 0.4])
    snapshots: list[dict[str, torch.Tensor]] = []

    def compute_scripted_metrics(
        probabilities: torch.Tensor, plan: Any, targets: Any
    ) -> dict[str, float]:
        if targets is not plan.val.targets:
            return {"accuracy": 0.0}  # of the sample of training images
        snapshots.append(copy_state(classifier.network))
        return {"accuracy": next(scores)}

    monkeypatch.setattr("finetune.probe.linear_probe._compute_metrics", compute_scripted_metrics)
    result = run_probe(training)
    assert (result.last_stage_epochs, result.metrics["accuracy"]) == (2, 0.9)
    assert not find_changed(snapshots[2], classifier.network)
    assert find_changed(snapshots[3], classifier.network)


def test_building_a_deep_probe_keeps_the_modes_of_the_network(place: Path) -> None:
    plain, deep = (training_in(place, probe__depth=depth) for depth in (1, 2))
    modes = [[m.training for m in one.module.classifier.modules()] for one in (plain, deep)]
    assert modes[0] == modes[1]


@pytest.mark.runs
@pytest.mark.usefixtures("_poor_head")
def test_fit_probe_trains_in_bf16(place: Path) -> None:
    training = training_in(
        place, trainer__precision="bf16-mixed", optim__lr=3e-3, optim__backbone_lr_scale=1
    )
    result = run_probe(training)
    assert result.last_stage_epochs
    assert result.train_loss < 0.5, "a uniform prediction has log(3)"
