"""Inference cost: counts by hand and published ones, and timings with a fake clock."""

import time
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models import torchvision_models
from finetune.models.costs import throughput
from finetune.models.costs.throughput import (
    compute_depthwise_density,
    count_macs,
    measure_throughput,
)
from finetune.types import PreprocessSpec

CPU = torch.device("cpu")
torchvision_models.register()


def make_spec(size: int) -> PreprocessSpec:
    return PreprocessSpec((3, size, size), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_count_macs_of_convolution_and_linear_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 10))
    expected = 8 * 8 * 4 * 3 * 3 * 3 + 4 * 64 * 10
    assert count_macs(network.eval(), make_spec(8), device=CPU) == expected


def test_count_macs_includes_attention_on_the_cpu() -> None:
    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2)[:, None]  # 3 tokens of width 64, in one head
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert count_macs(Attention(), make_spec(8), device=CPU) == 2 * 3 * 3 * 64


# He et al. 2016 and the torchvision and timm model cards give GMACs at 224 px
@pytest.mark.parametrize(
    ("backbone", "gmacs"),
    [
        ("resnet18", 1.81),
        ("resnet50", 4.09),
        ("vgg16", 15.47),
        ("googlenet", 1.5),
        ("alexnet", 0.71),
        ("mobilenetv2_100", 0.3),
        ("vit_tiny_patch16_224", 1.26),
    ],
)
def test_count_macs_matches_published_numbers(backbone: str, gmacs: float) -> None:
    with torch.device("meta"):
        network = timm.create_model(backbone).eval()
    num_macs = count_macs(network, make_spec(224), device=torch.device("meta"))
    assert num_macs / 1e9 == pytest.approx(gmacs, rel=0.01)


class SlowNetwork(nn.Module):
    """Network that takes some time for each image, and fails on more than ``max_images``."""

    def __init__(self, seconds: float, *, max_images: int = 99) -> None:
        super().__init__()
        self.seconds = seconds
        self.max_images = max_images
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.is_contiguous(memory_format=torch.channels_last)
        if len(images) > self.max_images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(len(images))
        clock.now += self.seconds * len(images)
        return images.mean(dim=(2, 3))


class FakeClock:
    now = 0.0


clock = FakeClock()


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def perf_counter() -> float:
        return clock.now

    monkeypatch.setattr(clock, "now", 0.0)  # the time of earlier tests would round differently
    monkeypatch.setattr(throughput, "time", type("Time", (), {"perf_counter": perf_counter}))
    assert time.perf_counter() != perf_counter()


@pytest.mark.parametrize(
    ("seconds", "max_images", "batch_size"),
    [(0.001, 99, 32), (0.125, 99, 8), (2.0, 99, 4), (0.001, 20, 16), (0.001, 1, 1)],
)
def test_measure_throughput_uses_a_batch_that_fits_and_is_fast(
    seconds: float, max_images: int, batch_size: int
) -> None:
    network = SlowNetwork(seconds, max_images=max_images)
    images_per_second = measure_throughput(network, make_spec(8), device=CPU, precision="32-true")
    assert images_per_second == pytest.approx(1 / seconds)
    assert network.sizes[-3:] == [batch_size] * 3


def test_measure_throughput_single_image_out_of_memory_raises() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(
            SlowNetwork(0.1, max_images=0), make_spec(8), device=CPU, precision="32-true"
        )


def test_measure_throughput_ignores_one_slow_batch() -> None:
    class Interrupted(SlowNetwork):
        def forward(self, images: Tensor) -> Tensor:
            clock.now += 5.0 if len(self.sizes) == 4 else 0.0
            return super().forward(images)

    images_per_second = measure_throughput(
        Interrupted(0.01), make_spec(8), device=CPU, precision="32-true"
    )
    assert images_per_second == pytest.approx(100)


def test_measure_throughput_uses_the_precision() -> None:
    dtypes: list[Any] = []

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            dtypes.append((images @ images.mT).dtype)
            clock.now += 1
            return images

    measure_throughput(Recorder(), make_spec(8), device=CPU, precision="bf16-mixed")
    assert set(dtypes) == {torch.bfloat16}


def test_depthwise_density_counts_outputs_per_thousand_macs() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),  # 3 MACs for each of 4 x 64 outputs
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4),  # depthwise, 9 for each of 8 x 16
        nn.Conv2d(8, 8, 1, groups=2),  # in groups, but not depthwise: 4 for each of 8 x 16
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    macs = 3 * 256 + 9 * 128 + 4 * 128 + 1280
    density = compute_depthwise_density(network, make_spec(8), device=CPU)
    assert density == pytest.approx(1000 * 128 / macs)


def test_depthwise_density_without_depthwise_convolutions_takes_no_forward_pass() -> None:
    network = nn.Conv2d(3, 4, 1)
    network.register_forward_hook(lambda *_: 1 / 0)
    assert compute_depthwise_density(network, make_spec(8), device=CPU) == 0


def test_depthwise_density_leaves_the_network_unchanged() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.Dropout())
    network[2].eval()
    modes = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    # each output is one MAC
    assert compute_depthwise_density(network, make_spec(8), device=CPU) == pytest.approx(1000)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network[0]._forward_hooks
