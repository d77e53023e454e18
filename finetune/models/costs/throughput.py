"""Inference cost of a network: multiply-adds per image, and images per second on this machine."""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
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
    """Return the multiply-adds (MACs) of a forward pass of one image.

    Counted by ``torch.utils.flop_counter`` in convolutions and matrix products, where one MAC is
    two FLOPs.

    Args:
        network: Network in eval mode, on the device.
        spec: Preprocessing of the network, for the size of the image.
        device: Device of the network.
    """
    image = torch.zeros(1, *spec.input_size, device=device)
    # inference_mode counts nothing (https://github.com/pytorch/pytorch/issues/126268), and fused
    # attention counts nothing on the CPU (https://github.com/pytorch/pytorch/issues/195460)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(image)
    return int(counter.get_total_flops()) // 2


def compute_depthwise_density(
    network: nn.Module, spec: PreprocessSpec, *, device: torch.device
) -> float:
    """Return the outputs of depthwise convolutions per thousand MACs of a forward pass.

    The network takes one forward pass, unless it has no depthwise convolutions.

    Args:
        network: Network on the device; its mode is restored.
        spec: Preprocessing of the network, for the size of the image.
        device: Device of the network.
    """
    layers = [module for module in network.modules() if _is_depthwise(module)]
    if not layers:
        return 0.0
    num_outputs = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal num_outputs
        del module, inputs
        num_outputs += output.numel()

    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with _enter_eval_mode(network):
            num_macs = count_macs(network, spec, device=device)
    finally:
        for handle in handles:
            handle.remove()
    return 1000 * num_outputs / max(1, num_macs)


def measure_throughput(
    network: nn.Module, spec: PreprocessSpec, *, device: torch.device, precision: str
) -> float:
    """Return the inference throughput in images per second, without loading.

    The median over batches of at most 32 random images, after warm-up, from uint8 pixels to logits
    as in a probe. The batch size is reduced where 32 images take more than a second or do not fit
    in memory.

    Args:
        network: Network in eval mode, on the device, in the channels-last format.
        spec: Preprocessing of the network.
        device: Device of the network.
        precision: Precision in Lightning's notation, such as "bf16-mixed".

    Raises:
        RuntimeError: A single image does not fit in memory.
    """
    profiler = _ForwardProfiler(network, spec, device=device, precision=precision)
    max_batch_size = _MAX_BATCH_SIZE
    while True:
        try:
            return profiler.measure_throughput(max_batch_size)
        except Exception as error:
            if max_batch_size == 1 or not is_out_of_memory(error):
                raise
        # outside of the handler, which keeps the tensors of the failed batch
        release_memory()
        max_batch_size //= 2


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


@contextmanager
def _enter_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and restore the mode of each afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _ForwardProfiler:
    """Timer of forward passes of random pixels."""

    def __init__(
        self, network: nn.Module, spec: PreprocessSpec, *, device: torch.device, precision: str
    ) -> None:
        self.network = network
        self.spec = spec
        self.device = device
        self.precision = precision

    def measure_throughput(self, max_batch_size: int) -> float:
        """Return the images per second of batches of at most ``max_batch_size`` images."""
        batch_size = min(_SMALL_BATCH_SIZE, max_batch_size)
        self._time_forward(1)
        affordable = math.floor(batch_size * _MAX_BATCH_SECONDS / self._time_forward(batch_size))
        batch_size = max(batch_size, min(max_batch_size, affordable))
        self._time_forward(batch_size)
        return batch_size / self._measure_median_seconds(batch_size)

    def _measure_median_seconds(self, batch_size: int) -> float:
        """Return the median time of 3 to 20 forward passes, fewer the slower they are."""
        seconds: list[float] = []
        while len(seconds) < _MIN_BATCHES or (
            len(seconds) < _MAX_BATCHES and sum(seconds) < _MAX_TOTAL_SECONDS
        ):
            seconds.append(self._time_forward(batch_size))
        return statistics.median(seconds)

    def _time_forward(self, batch_size: int) -> float:
        """Return the seconds of one forward pass."""
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
