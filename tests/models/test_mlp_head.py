"""Heads with hidden layers and first weights, compared with torch; from training to predictions."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.fit.fit import fit as run_fit
from finetune.commands.fit.fit import resume
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError, ModelError
from finetune.models.backbone import create_network
from finetune.models.classifier import ImageClassifier
from finetune.models.head import find_linear_head
from finetune.models.mlp_head import MlpHead, MlpSettings, find_mlp_head
from tests.support.networks import randomise
from tests.support.runs import (
    assert_same_bits,
    create_small_config,
    create_small_training,
    load_weights,
    write_weights,
)

pytestmark = pytest.mark.usefixtures("few_penalties")

FAMILIES = (
    "test_resnet", "test_vit", "test_efficientnet", "test_convnext", "alexnet",
    "mobilenetv2_050",
)  # fmt: skip
SETTINGS = MlpSettings((7, 5), 0.3, "gelu")


@pytest.mark.parametrize("name", FAMILIES)
def test_mlp_head_replaces_the_classifier_and_is_the_first_layer_group(name: str) -> None:
    network = create_network(name, num_classes=3, weights="random", mlp=SETTINGS).module
    randomise(network)
    linear = find_linear_head(create_network(name, num_classes=3, weights="random").module)
    assert linear is not None
    head = find_mlp_head(network)
    assert head is not None
    assert find_linear_head(network) is None
    widths = [m.out_features for m in head.modules() if isinstance(m, nn.Linear)]
    assert (head.in_features, widths) == (linear.in_features, [7, 5, 3])
    classifier = ImageClassifier(network)
    own = {id(parameter) for parameter in head.parameters()}
    parameters = dict(network.named_parameters())
    assert {id(parameters[n]) for n in classifier.groups[0].parameter_names} == own
    for group in classifier.groups[1:]:
        assert not own & {id(parameters[n]) for n in group.parameter_names}
    classifier.set_depth(1)
    classifier.train()
    assert [m.training for m in head.modules() if isinstance(m, nn.Dropout)] == [True, True]
    side = int(network.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    classifier(torch.randn(2, 3, side, side)).sum().backward()
    trained = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert trained == {*classifier.groups[0].parameter_names}


def test_mlp_head_computes_what_plain_layers_compute() -> None:
    head = MlpHead(4, 3, SETTINGS).eval()
    first, second = (m for m in head.hidden if isinstance(m, nn.Linear))
    features = torch.randn(6, 4)
    gelu = nn.functional.gelu
    expected = head.output(gelu(second(gelu(first(features)))))
    torch.testing.assert_close(head(features), expected)
    rates = [m.p for m in head.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3, 0.3]


def test_mlp_head_of_two_classifiers_raises_model_error() -> None:
    with pytest.raises(ModelError, match=r"model\.head=mlp .*not one linear layer"):
        create_network(
            "deit_tiny_distilled_patch16_224", num_classes=3, weights="random", mlp=SETTINGS
        )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_head_init_equals_torch_init(name: str) -> None:
    initialisers: dict[Any, Any] = {
        "zero": lambda weight, generator: nn.init.zeros_(weight),
        "xavier": nn.init.xavier_uniform_,
        "he": lambda weight, generator: nn.init.kaiming_normal_(
            weight, nonlinearity="relu", generator=generator
        ),
    }
    backbones = []
    for method, initialise in initialisers.items():
        network = create_network(
            name, num_classes=3, weights="random", head_init=method, seed=5
        ).module
        head = find_linear_head(network)
        assert head is not None
        expected = torch.empty_like(head.weight)
        initialise(expected, generator=torch.Generator().manual_seed(5))
        assert torch.equal(head.weight, expected)
        assert torch.equal(head.bias, torch.zeros(3))
        state = network.state_dict()
        backbones.append({n: t for n, t in state.items() if t.shape[:1] != (3,)})
    assert_same_bits(backbones[0], backbones[1])
    assert_same_bits(backbones[0], backbones[2])


@pytest.mark.parametrize(("activation", "gain"), [("relu", math.sqrt(2)), ("tanh", 1.0)])
def test_zero_head_init_of_hidden_layers_keeps_the_scale_of_the_features(
    activation: str, gain: float
) -> None:
    settings = MlpSettings((2000,), 0.0, activation)
    network = create_network("test_resnet", num_classes=3, weights="random", mlp=settings).module
    head = find_mlp_head(network)
    assert head is not None
    hidden = next(m for m in head.hidden if isinstance(m, nn.Linear))
    fan = hidden.in_features if activation == "relu" else (hidden.in_features + 2000) / 2
    assert float(hidden.weight.detach().std()) == pytest.approx(gain / math.sqrt(fan), rel=0.02)
    assert not head.output.weight.any()
    assert not hidden.bias.any()
    logits = network(torch.randn(2, 3, 64, 64))
    assert torch.equal(logits, torch.zeros(2, 3))


def configure(animals: Path, weights: Path, folder: Path, epochs: int = 2) -> Config:
    return create_small_config(
        data__path=str(animals),
        output=str(folder),
        model__weights=str(weights),
        model__head="mlp",
        model__head_params={"hidden": [16], "drop_rate": 0.2, "activation": "silu"},
        lr_schedule__name="constant",
        lr_schedule__warmup_fraction=0.0,
        unfreeze__name="all",
        optim__max_norm={"head": 2.0},
        trainer__epochs=epochs,
    )


@pytest.mark.runs
def test_run_with_mlp_head_trains_resumes_predicts_and_refuses_the_timm_format(
    animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_fit(configure(animals, weights, whole))
    run_fit(configure(animals, weights, resumed, 1))
    resume(resumed, assignments={"trainer.epochs": 2})
    assert_same_bits(load_weights(whole), load_weights(resumed))

    images = sorted((animals / "val").rglob("*.png"))
    tables = []
    for model in (whole, whole / "bundle", whole / "checkpoints" / "best.ckpt"):
        bundle = load_model(model)
        assert bundle.card.head == {
            "name": "mlp", "hidden": [16], "drop_rate": 0.2, "activation": "silu",
        }  # fmt: skip
        assert not bundle.network.training
        predicted = finetune.predict(model, animals / "val", device="cpu").predictions
        assert len(predicted) == len(images)
        tables.append([(p.labels, p.probabilities) for p in predicted])
    assert tables[0] == tables[1]
    evaluation = finetune.evaluate(whole, split="val", device="cpu").evaluation
    stored = load_model(whole).card.facts["metrics"]["val"]
    assert evaluation.metrics["accuracy"] == pytest.approx(stored["accuracy"])
    with pytest.raises(ConfigError, match=r"timm format .*model\.head=mlp"):
        finetune.export(whole, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    readme = (whole / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "hidden layers" in readme
    assert "timm.create_model" not in readme


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_weights_of_a_run_with_mlp_head_start_another_run(
    head: str, animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    run_fit(configure(animals, weights, tmp_path / "run", 1))
    training = create_small_training(
        animals, model__weights=str(tmp_path / "run"), model__head=head, probe__enabled="off"
    )
    loaded = training.network.module.state_dict()
    stored = load_model(tmp_path / "run").network.state_dict()
    names = [name for name in stored if not name.startswith("fc.")]
    assert len(names) > 10
    assert all(torch.equal(loaded[name], stored[name]) for name in names)
    assert training.network.report.loaded_fraction == 1


def test_plan_of_mlp_head_has_no_probe_and_trains_the_head_first(
    animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    training = create_small_training(animals, model__weights=str(weights), model__head="mlp")
    assert training.probe is None
    assert "hidden layers" in training.reasons["probe.enabled"]
    assert training.config.unfreeze.name == "head_first"
    assert training.phases[0].depth == 1
    assert training.config.model.mlp_options is not None
    assert training.config.model.mlp_options.hidden == (512,)
    with pytest.raises(ConfigError, match=r"probe\.enabled=on .*model\.head=mlp"):
        create_small_training(
            animals, model__weights=str(weights), model__head="mlp", probe__enabled="on"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_params": {"hidden": [3]}}, r"head_params .*model\.head=linear"),
        ({"head": "mlp", "head_params": {"width": 3}}, r"unknown parameter 'width'"),
        ({"head": "mlp", "head_params": {"hidden": [0]}}, r"head_params\.hidden\.0: found 0"),
        ({"head": "mlp", "head_params": {"hidden": []}}, r"head_params\.hidden: "),
        ({"head": "mlp", "head_params": {"drop_rate": 1}}, r"head_params\.drop_rate: found 1"),
        ({"head": "mlp", "head_params": {"activation": "elu"}}, r"activation: found 'elu'.*'relu'"),
        ({"head": "conv"}, r"model\.head: found 'conv'"),
        ({"head_init": "normal"}, r"model\.head_init: found 'normal'"),
    ],
)
def test_invalid_head_settings_raise_config_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"model": settings})


def test_state_of_mlp_head_loads_into_a_network_that_timm_built(tmp_path: Path) -> None:
    network = create_network("test_resnet", num_classes=3, weights="random", mlp=SETTINGS).module
    plain = timm.create_model("test_resnet", num_classes=3)
    missing = plain.load_state_dict(network.state_dict(), strict=False)
    assert sorted(missing.missing_keys) == ["fc.bias", "fc.weight"]
    assert all(name.startswith(("fc.hidden.", "fc.output.")) for name in missing.unexpected_keys)
