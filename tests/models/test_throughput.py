"""What a forward pass takes: against counts by hand, published ones, and a clock that is set."""

import time
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models import throughput as forward_cost
from finetune.models import torchvision_models as zoo
from finetune.models.throughput import count_macs, measure_throughput
from finetune.types import PreprocessSpec

CPU = torch.device("cpu")
zoo.register()


def spec_of(size: int) -> PreprocessSpec:
    return PreprocessSpec((3, size, size), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_convolution_and_a_linear_layer_are_counted_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 10))
    expected = 8 * 8 * 4 * 3 * 3 * 3 + 4 * 64 * 10
    assert count_macs(network.eval(), spec_of(8), device=CPU) == expected


def test_attention_is_counted_on_the_cpu_too() -> None:
    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rows = images.flatten(2)[:, None]  # 3 tokens of 64 numbers, in one head
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)

    assert count_macs(Attention(), spec_of(8), device=CPU) == 2 * 3 * 3 * 64


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
def test_the_known_networks_come_to_the_known_numbers(backbone: str, gmacs: float) -> None:
    with torch.device("meta"):
        network = timm.create_model(backbone).eval()
    found = count_macs(network, spec_of(224), device=torch.device("meta"))
    assert found / 1e9 == pytest.approx(gmacs, rel=0.01)


class Slow(nn.Module):
    """Takes its time for each image, and refuses more than so many at once."""

    def __init__(self, seconds: float, *, room: int = 99) -> None:
        super().__init__()
        self.seconds = seconds
        self.room = room
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.is_contiguous(memory_format=torch.channels_last)
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(len(images))
        clock.now += self.seconds * len(images)
        return images.mean(dim=(2, 3))


class Clock:
    now = 0.0


clock = Clock()


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def passed() -> float:
        return clock.now

    monkeypatch.setattr(clock, "now", 0.0)  # of the tests before: it would round differently
    monkeypatch.setattr(forward_cost, "time", type("Time", (), {"perf_counter": passed}))
    assert time.perf_counter() != passed()


@pytest.mark.parametrize(
    ("seconds", "room", "size"),
    [(0.001, 99, 32), (0.125, 99, 8), (2.0, 99, 4), (0.001, 20, 16), (0.001, 1, 1)],
)
def test_images_a_second_are_those_of_a_batch_that_fits_and_is_affordable(
    seconds: float, room: int, size: int
) -> None:
    network = Slow(seconds, room=room)
    found = measure_throughput(network, spec_of(8), device=CPU, precision="32-true")
    assert found == pytest.approx(1 / seconds)
    assert network.sizes[-3:] == [size] * 3


def test_what_does_not_fit_at_all_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(Slow(0.1, room=0), spec_of(8), device=CPU, precision="32-true")


def test_one_batch_that_was_disturbed_does_not_count() -> None:
    class Disturbed(Slow):
        def forward(self, images: Tensor) -> Tensor:
            clock.now += 5.0 if len(self.sizes) == 4 else 0.0
            return super().forward(images)

    found = measure_throughput(Disturbed(0.01), spec_of(8), device=CPU, precision="32-true")
    assert found == pytest.approx(100)


def test_the_precision_is_that_of_the_probe() -> None:
    seen: list[Any] = []

    class Seen(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((images @ images.mT).dtype)
            clock.now += 1
            return images

    measure_throughput(Seen(), spec_of(8), device=CPU, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
