"""``scripts/benchmarks/fine_tuning_loop.py``: settings, optimizers, and the results of variants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scripts.benchmarks import fine_tuning_loop
from scripts.benchmarks.lib import loop_images, loop_optimizer
from scripts.benchmarks.lib.loop_optimizer import ProbedNetwork, Variant, parse_variant
from tests.support.runs import write_photos, write_weights


class Backbone(nn.Module):
    """A linear layer and its input layer, as two layer groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stage = nn.Linear(4, 3)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stage"}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.stage(self.stem(inputs))
        return features


def build_network() -> ProbedNetwork:
    torch.manual_seed(3)
    return ProbedNetwork(Backbone(), torch.ones(2, 3), torch.zeros(2))


def test_variant_is_parsed() -> None:
    variant = parse_variant("x=lr:1e-3,scale_head:off,batch_norm:live,epochs:10")
    assert variant == Variant("x", lr=1e-3, scale_head=False, batch_norm="live", epochs=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=rate:1", "no setting 'rate'"),
        ("x=lr:high", "lr: could not convert"),
        ("x=relative:column", "none of none, tensor, row"),
    ],
)
def test_invalid_variant_is_named(text: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        parse_variant(text)


def test_rates_fall_from_head_to_first_group() -> None:
    network = build_network()
    variant = Variant("x", head_lr_scale=3.0, layer_decay=0.5)
    groups = loop_optimizer.build_optimizer(network, variant, lr=0.01).param_groups
    rates = {id(group["params"][0]): group["lr"] for group in groups}
    backbone: Any = network.backbone
    assert rates[id(network.head.weight)] == pytest.approx(0.03)
    assert rates[id(backbone.stage.weight)] == pytest.approx(0.01)
    assert rates[id(backbone.stem.bias)] == pytest.approx(0.005)  # 0.5 ** (4 / 4)


@pytest.mark.parametrize("relative", ["tensor", "row"])
def test_relative_step_is_a_fraction_of_the_weights_rms(
    relative: loop_optimizer.Relative,
) -> None:
    network = build_network()
    weight: Any = network.backbone.stage.weight  # type: ignore[union-attr]
    before = weight.detach().clone()
    variant = Variant("x", relative=relative)
    optimizer = loop_optimizer.build_optimizer(network, variant, lr=0.01)
    weight.grad = torch.full_like(weight, 0.3)
    optimizer.step()
    dims = 1 if relative == "row" else (0, 1)
    rms = before.square().mean(dim=dims, keepdim=True).sqrt()
    decay = loop_optimizer.WEIGHT_DECAY * 0.01 * (1 if relative == "row" else rms)
    torch.testing.assert_close(weight.detach(), before * (1 - decay) - 0.01 * rms)


def test_row_steps_equal_those_of_adamw_where_all_factors_are_one() -> None:
    weights = [nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)) for _ in range(2)]
    group = {"lr": 0.1, "weight_decay": 0.05}
    rows = loop_optimizer.RowAdamW(
        [{"params": [weights[0]], "row_scale": torch.ones(2, 3), **group}], beta2=0.99
    )
    reference = torch.optim.AdamW([{"params": [weights[1]], **group}], betas=(0.9, 0.99))
    for step in range(5):
        for weight in weights:
            weight.grad = torch.sin(step + torch.arange(6.0)).view(2, 3)
        rows.step()
        reference.step()
    torch.testing.assert_close(weights[0], weights[1])


def test_measured_change_is_that_of_a_step() -> None:
    network = build_network()
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    start = {name: value.clone() for name, value in network.state_dict().items()}

    def compute_features() -> torch.Tensor:
        with torch.no_grad():
            features: torch.Tensor = network.backbone(inputs)
        return features

    change = loop_optimizer.measure_change_per_lr(
        network,
        (network(inputs)[:, index].square().mean() for index in range(1)),
        compute_features,
        num_batches=1,
        layer_decay=0.7,
    )
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, start[name])
    features = compute_features()
    network(inputs)[:, 0].square().mean().backward()
    optimizer = loop_optimizer.build_optimizer(network, Variant("x"), lr=1e-5)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = (compute_features() - features).norm() / (features - features.mean(dim=0)).norm()
    assert change * 1e-5 == pytest.approx(float(moved), rel=0.02)


def test_validation_has_a_fifth_of_each_class_and_at_least_one() -> None:
    labels = np.repeat([0, 1, 2], [20, 10, 2])
    rows = loop_images.draw_validation_rows(labels, seed=4)
    assert np.bincount(labels[rows]).tolist() == [4, 2, 1]
    assert (rows != loop_images.draw_validation_rows(labels, seed=5)).any()


def test_random_crop_is_mirrored_in_half_of_the_draws() -> None:
    image = torch.arange(20, dtype=torch.uint8).repeat(20, 1)[..., None].repeat(1, 1, 3)
    generator = np.random.default_rng(0)
    rising = [
        bool(crop[0, 0, 0] < crop[0, -1, 0])
        for crop in (
            loop_images.crop_randomly(image, generator, side=8, is_mirrored=True) for _ in range(40)
        )
    ]
    assert 8 < sum(rising) < 32
    crop = loop_images.crop_randomly(image, generator, side=8, is_mirrored=False)
    assert crop.shape == (8, 8, 3)
    assert (crop[0, 1:, 0] > crop[0, :-1, 0]).all()


@pytest.mark.runs
def test_variants_start_from_the_probe_and_keep_their_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, weights = write_photos(tmp_path / "photos", num_train=15), tmp_path / "w.pth"
    write_weights(weights)
    arguments = [
        str(tmp_path / "results.jsonl"), f"--case=photos={photos}",
        f"--weights=test_resnet={weights}", "--side=32",
    ]  # fmt: skip
    variants = ["still=lr:1e-30", "half=feature_change:0.4", "one=feature_change:0.8,epochs:2"]
    fine_tuning_loop.main([*arguments, *variants])
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    probe, still, half, one = (json.loads(line) for line in lines)
    assert (probe["num_train"], probe["num_val"]) == (36, 9)
    assert [test[0] for test in still["test"]] == [probe["test"][0]] * 6
    assert all(test == still["test"][0] for _, test in still["line"].values())
    assert still["mean"][1] == still["ema"][1] == still["test"][0]
    assert one["lr"] == pytest.approx(2 * half["lr"])
    assert len(one["val"]) == len(one["test"]) == 2
    assert one["test"][-1] != still["test"][-1]
    assert "one: lr" in capsys.readouterr().out
