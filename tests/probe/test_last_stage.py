"""A probe that goes deeper than the head: what moves, what stays, and what is kept of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from finetune.builders import Training
from finetune.data.images.lazy_image import open_image
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError, StorageError, TrainingError
from finetune.models.graph_split import SplitNetwork, split_last_groups
from finetune.probe import last_stage as tail_module
from finetune.probe.linear_probe import ProbeResult, fit_probe
from finetune.types import Reporter
from tests.support.networks import changed, snapshot
from tests.support.runs import let_the_head_be_poor, small_training


def training_in(place: Path, **settings: Any) -> Training:
    own: dict[str, Any] = {
        "model__weights": str(place / "weights.pth"),
        "data__cache": str(place / "cache"),
        "trainer__epochs": "auto",
        "unfreeze__name": "linear_probe",
        "probe__depth": 2,
        "trainer__monitor": "loss",
    }
    return small_training(place / "photos", **{**own, **settings})


def probed(training: Training) -> ProbeResult:
    assert training.probe is not None
    found = fit_probe(
        training.module.classifier,
        training.probe,
        device=torch.device("cpu"),
        rendezvous=None,
        reporter=Reporter(),
    )
    assert found is not None
    return found


def of_validation(training: Training) -> dict[str, float]:
    """Return what the whole network comes to on the images themselves."""
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
    let_the_head_be_poor(monkeypatch)


@pytest.mark.usefixtures("_poor_head")
def test_the_last_layers_alone_move(place: Path) -> None:
    training = training_in(place, optim__lr=3e-3, optim__backbone_lr_scale=1)
    classifier = training.module.classifier
    before = snapshot(classifier.network)
    found = probed(training)
    assert found.last_stage_epochs
    groups = classifier.groups[:2]
    moved = changed(before, classifier.network)
    assert moved == {name for group in groups for name in group.parameter_names}
    assert found.train_loss < 0.5, "a guess has log(3)"
    assert not any(parameter.grad is not None for parameter in classifier.parameters())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.usefixtures("_poor_head")
def test_what_is_said_is_what_the_network_then_does(place: Path) -> None:
    training = training_in(place, optim__lr=3e-3, optim__backbone_lr_scale=1)
    found = probed(training)
    assert found.last_stage_epochs
    for name, value in of_validation(training).items():
        assert found.metrics[name] == pytest.approx(value, abs=1e-4), name


def test_where_no_epoch_beats_the_head_nothing_has_moved(place: Path) -> None:
    alone = training_in(place, probe__depth=1)
    probed(alone)
    deeper = training_in(place, optim__lr=50.0, optim__backbone_lr_scale=1)
    found = probed(deeper)
    assert found.last_stage_epochs == 0
    assert found.metrics == found.head_metrics
    assert not changed(snapshot(alone.module.classifier.network), deeper.module.classifier.network)


@pytest.mark.usefixtures("_poor_head")
def test_statistics_stay_though_the_run_moves_them(place: Path) -> None:
    training = training_in(
        place, model__batch_norm="train", optim__lr=3e-3, optim__backbone_lr_scale=1
    )
    classifier = training.module.classifier
    before = snapshot(classifier.network)
    assert probed(training).last_stage_epochs
    assert not {n for n in changed(before, classifier.network) if "running" in n}
    assert classifier.batch_norm == "train"


def test_what_is_kept_is_not_asked_for_again(place: Path) -> None:
    assert probed(training_in(place)).num_computed == 39
    assert probed(training_in(place, optim__lr=1e-4, seed=5)).num_computed == 0
    assert probed(training_in(place, probe__depth=1)).num_computed == 0
    # other maps
    assert probed(training_in(place, probe__depth=3)).num_computed == 39


def test_too_little_memory_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(tail_module, "iter_training_epochs", short)
    with pytest.raises(
        TrainingError,
        match=r"2 layer groups on kept maps.*does not fit.*trainer\.accumulate_grad_batches",
    ):
        probed(training_in(place))


def test_maps_that_find_no_room_beside_others_are_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.probe.cached_extractor.evict_to_fit", lambda *given, **more: False
    )
    with pytest.raises(StorageError, match=r"no room .* of maps .*Raise cache\.max_gb"):
        probed(training_in(place))
    assert probed(training_in(place, probe__depth=1)).num_computed == 39


def test_pixels_make_way_for_the_maps_that_were_asked_for(place: Path) -> None:
    both = {"unfreeze__name": "all", "trainer__epochs": 2, "data__cache": "auto"}
    wide = training_in(place, **both)
    assert wide.probe is not None
    assert wide.probe.last_stage is not None
    assert wide.cache is not None
    limit = (wide.probe.last_stage.num_bytes + wide.cache.num_bytes / 2) / 1e9
    narrow = training_in(place, cache__max_gb=limit, **both)
    assert narrow.cache is None
    assert re.search(r"GB of pixels beside 0\.0 GB of maps are more than", narrow.no_cache_reason)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe__depth": 99}, r"probe\.depth=99 leaves nothing of test_resnet frozen"),
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
        ({"cache__max_gb": 1e-5}, r"keeps 0\.\d+ GB of maps.*more than cache\.max_gb=1e-05"),
    ],
    ids=["too deep", "no probe", "neither", "no depth", "no epochs", "no room"],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        training_in(place, **settings)


def test_a_network_that_cannot_be_followed_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.builders.last_stage_plan.split_last_groups", lambda *given: None)
    with pytest.raises(ConfigError, match=r"probe\.depth=2 cannot apply to test_resnet"):
        training_in(place)


def test_a_cut_that_computes_something_else_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: nn.Module, depth: int) -> SplitNetwork:
        halves = split_last_groups(network, depth)
        other = split_last_groups(timm.create_model("test_resnet", num_classes=3).eval(), depth)
        assert halves is not None
        assert other is not None
        return SplitNetwork(halves.trunk, other.last_stage, halves.node_name)

    monkeypatch.setattr("finetune.builders.last_stage_plan.split_last_groups", wrong)
    with pytest.raises(ConfigError, match=r"cannot be told from its code"):
        training_in(place)


def test_the_best_pass_is_kept_by_what_grows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_in(
        place, probe__last_stage_epochs=3, optim__lr=3e-3, optim__backbone_lr_scale=1,
        trainer__monitor="accuracy",
    )  # fmt: skip
    classifier = training.module.classifier
    scores = iter([0.4, 0.5, 0.9, 0.7, 0.9, 0.4])  # the head alone, each pass, then what is said
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(probabilities: torch.Tensor, plan: Any) -> dict[str, float]:
        seen.append(snapshot(classifier.network))
        return {"accuracy": next(scores)}

    monkeypatch.setattr("finetune.probe.linear_probe._compute_metrics", scripted)
    found = probed(training)
    assert (found.last_stage_epochs, found.metrics["accuracy"]) == (2, 0.9)
    assert not changed(seen[2], classifier.network)
    assert changed(seen[3], classifier.network)


def test_planning_leaves_the_network_in_its_mode(place: Path) -> None:
    plain, deep = (training_in(place, probe__depth=depth) for depth in (1, 2))
    modes = [[m.training for m in one.module.classifier.modules()] for one in (plain, deep)]
    assert modes[0] == modes[1]


@pytest.mark.usefixtures("_poor_head")
def test_it_learns_in_less_precision(place: Path) -> None:
    training = training_in(
        place, trainer__precision="bf16-mixed", optim__lr=3e-3, optim__backbone_lr_scale=1
    )
    found = probed(training)
    assert found.last_stage_epochs
    assert found.train_loss < 0.5, "a guess has log(3)"
