"""Means of earlier stages, in the pass of a network that computes its logits."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.models.layer_groups import find_layer_groups
from finetune.models.stage_outputs import average_positions, observe_stages
from tests.support.networks import randomise

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def create_network(name: str, **options: Any) -> nn.Module:
    network: nn.Module = timm.create_model(name, num_classes=3, **options).eval()
    randomise(network)
    return network


def capture_outputs(network: nn.Module, names: list[str]) -> list[Tensor]:
    """Return the outputs of some layers in a pass of the network itself."""
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, args, output: outputs.append(output.clone())
        )
        for name in names
    ]
    with torch.inference_mode():
        network(IMAGES)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize(
    ("name", "dims", "num_stages"),
    [("test_resnet", (2, 3), 4), ("test_efficientnet", (2, 3), 3), ("test_vit", (1,), 3),
     ("test_convnext", (2, 3), 4)],
)  # fmt: skip
def test_observe_stages_returns_means_of_the_layer_before_each_group(
    name: str, dims: tuple[int, ...], num_stages: int
) -> None:
    network = create_network(name, **({"img_size": 64} if name == "test_vit" else {}))
    found = observe_stages(network)
    assert found is not None
    graph, stages = found
    with torch.inference_mode():
        logits, *means = graph(IMAGES)
        torch.testing.assert_close(logits, network(IMAGES))
    # names are layers, but for stems that end in another one
    layers = {stage.name: {"conv1": "maxpool"}.get(stage.name, stage.name) for stage in stages}
    pairs = [
        (layers[stage.name], actual)
        for stage, actual in zip(stages, means, strict=True)
        if stage.name not in ("conv_stem", "cls_token")
    ]
    assert len(pairs) == num_stages
    outputs = capture_outputs(network, [layer for layer, _ in reversed(pairs)])
    for (_, actual), output in zip(pairs, reversed(outputs), strict=True):
        torch.testing.assert_close(actual, output.mean(dims), rtol=1e-4, atol=1e-5)
    names = [group.name for group in find_layer_groups(network)]
    assert [names[stage.depth] for stage in stages] == [stage.name for stage in stages]


def test_observe_stages_selects_evenly_among_many_groups() -> None:
    found = observe_stages(create_network("test_vit", img_size=64), max_stages=2)
    assert found is not None
    _, stages = found
    depths = [stage.depth for stage in stages]
    assert len(stages) == 2
    assert depths[0] == 2
    assert depths[1] == len(find_layer_groups(create_network("test_vit"))) - 1


def test_fold_batch_norm_returns_the_same_means_and_the_inner_node() -> None:
    network = create_network("test_resnet")
    found = observe_stages(network, inner_node="layer3_0_act3")
    assert found is not None
    graph, stages = found
    folded = fold_batch_norm(network, inner_node="layer3_0_act3", stages=stages)
    assert folded is not None
    with torch.inference_mode():
        outputs = list(zip(folded(IMAGES), graph(IMAGES), strict=True))
    assert len(outputs) == 2 + len(stages)
    for actual, expected in outputs:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_observe_stages_of_a_network_that_cannot_be_traced_is_none() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def get_classifier(self) -> nn.Module:
            return self.fc

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.stem(x)) if x.sum() > 0 else self.fc(x)
            return logits

    assert observe_stages(Dynamic().eval()) is None


@pytest.mark.parametrize(
    ("shape", "prefers_channels_last", "dims"),
    [
        ((2, 5, 4, 4), True, (2, 3)),
        ((2, 4, 4, 5), False, (1, 2)),
        ((2, 4, 4, 4), True, (1, 2)),
        ((2, 4, 4, 4), False, (2, 3)),
        ((2, 7, 5), False, (1,)),
    ],
)
def test_average_positions_finds_the_axes(
    shape: tuple[int, ...], prefers_channels_last: bool, dims: tuple[int, ...]
) -> None:
    activations = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    actual = average_positions(activations, prefers_channels_last)
    torch.testing.assert_close(actual, activations.mean(dims))
    half = average_positions(activations.bfloat16(), prefers_channels_last)
    assert half.dtype == torch.float32
