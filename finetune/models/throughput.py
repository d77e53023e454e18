"""What it takes a network to answer: multiplications for an image, and images a second here."""

import math
import statistics
import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.models.classifier import normalise
from finetune.system.hardware import autocast, is_out_of_memory, release_memory
from finetune.types import PreprocessSpec

_MAX_BATCH_SIZE, _SMALL_BATCH_SIZE = 32, 4
_MAX_BATCH_SECONDS = 1.0
_MAX_TOTAL_SECONDS = 3.0
_MIN_BATCHES, _MAX_BATCHES = 3, 20


def count_macs(network: nn.Module, spec: PreprocessSpec, *, device: torch.device) -> int:
    """Return the multiply-adds of one image through a network, of which a GMAC is a billion.

    Counted by ``torch.utils.flop_counter`` in convolutions and matrix products, of which each
    multiply-add is two of its operations.

    Args:
        network: In eval mode, on the device.
        spec: The size of the image.
        device: Where.
    """
    image = torch.zeros(1, *spec.input_size, device=device)
    # inference_mode counts nothing (https://github.com/pytorch/pytorch/issues/126268), and fused
    # attention counts nothing on the CPU (https://github.com/pytorch/pytorch/issues/195460)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(image)
    return int(counter.get_total_flops()) // 2


def measure_throughput(
    network: nn.Module, spec: PreprocessSpec, *, device: torch.device, precision: str
) -> float:
    """Return how many images a network answers for in a second, once they are in memory.

    The median of some batches of at most 32 random images, after some that warm up, from uint8
    pixels to logits as a probe does it. Fewer images at once are taken where 32 need more than a
    second or do not fit.

    Args:
        network: In eval mode, on the device, in the channels-last format.
        spec: What it expects.
        device: Where.
        precision: As Lightning names it.

    Raises:
        RuntimeError: Not even one image fits into the memory.
    """
    meter = _ForwardProfiler(network, spec, device=device, precision=precision)
    most = _MAX_BATCH_SIZE
    while True:
        try:
            return meter.measure_throughput(most)
        except Exception as error:
            if most == 1 or not is_out_of_memory(error):
                raise
        # outside of the handler, which keeps the tensors of the failed batch
        release_memory()
        most //= 2


class _ForwardProfiler:
    """Takes forward passes of random pixels."""

    def __init__(
        self, network: nn.Module, spec: PreprocessSpec, *, device: torch.device, precision: str
    ) -> None:
        self.network = network
        self.spec = spec
        self.device = device
        self.precision = precision

    def measure_throughput(self, max_batch_size: int) -> float:
        """Return what batches of at most so many images come to."""
        size = min(_SMALL_BATCH_SIZE, max_batch_size)
        self._time_forward(1)
        affordable = math.floor(size * _MAX_BATCH_SECONDS / self._time_forward(size))
        size = max(size, min(max_batch_size, affordable))
        self._time_forward(size)
        return size / self._measure_median_seconds(size)

    def _measure_median_seconds(self, batch_size: int) -> float:
        found: list[float] = []
        while len(found) < _MIN_BATCHES or (
            len(found) < _MAX_BATCHES and sum(found) < _MAX_TOTAL_SECONDS
        ):
            found.append(self._time_forward(batch_size))
        return statistics.median(found)

    def _time_forward(self, batch_size: int) -> float:
        channels, height, width = self.spec.input_size
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, height, width, channels)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        images = pixels.to(self.device)
        self._synchronize()
        start = time.perf_counter()
        with torch.inference_mode(), autocast(self.precision, self.device):
            self.network(normalise(images, mean=self.spec.mean, std=self.spec.std))
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
