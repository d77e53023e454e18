"""Memory and time of a training step, measured on a copy of the network before the first epoch."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from finetune.data.dataset import Batch
from finetune.models.classifier import ImageClassifier, eval_mode, normalise
from finetune.models.costs.layer_costs import LayerCost, measure_layers
from finetune.system.hardware import autocast, is_out_of_memory, release_memory
from finetune.training.module import ClassificationModule

_MIN_IMAGES = 4  # fewer would not occupy the cores
_NUM_TIMED_STEPS = 3
_FORWARDS_PER_STEP = 3.5


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Memory of a training step at one unfreeze depth, in one process.

    Attributes:
        depth: Number of layer groups that train.
        parameter_bytes: Size of all parameters and buffers, and of their average if one is kept.
        gradient_bytes: Size of the gradients.
        optimizer_bytes: Size of the optimizer's state after a step.
        activation_bytes: Size of the tensors saved for the backward pass, per image.
        fixed_bytes: Size of the tensors saved for the backward pass, independent of the batch.
    """

    depth: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    fixed_bytes: int

    def compute_total_bytes(self, batch_size: int) -> int:
        """Compute the memory of a step, without the temporary workspace of the libraries."""
        static_bytes = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes
        return static_bytes + self.fixed_bytes + self.activation_bytes * batch_size


@dataclass(frozen=True, slots=True)
class StepCost(StepMemory):
    """Memory and time of a training step at one unfreeze depth, in one process.

    Attributes:
        train_seconds_per_image: Seconds of forward, backward and optimizer step, per image.
        eval_seconds_per_image: Seconds of the forward pass in eval mode, per image.
    """

    train_seconds_per_image: float
    eval_seconds_per_image: float


class StepProfiler:
    """Profiler that takes training steps on a copy of a module's network.

    The module, its optimizer and torch's generators remain unchanged.

    Args:
        module: Module to be trained.
        batch: Training images.
        batch_size: Images of a step in this process.
        device: Device of the copy.
        precision: Lightning's name of the precision.
        max_step_seconds: Upper limit of the expected time of a measured step; fewer images than
            ``batch_size`` are timed if a step would take longer.
    """

    def __init__(
        self,
        module: ClassificationModule,
        batch: Batch,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
        max_step_seconds: float = 1.0,
    ) -> None:
        self.module = module
        self.classifier: ImageClassifier = copy.deepcopy(module.classifier).to(device)
        self.images = batch["image"].to(device)
        self.labels = batch["label"].to(device)
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.max_step_seconds = max_step_seconds

    def measure(self, depth: int) -> StepCost:
        """Measure memory and time of a step at a depth.

        Raises:
            RuntimeError: Not even four images fit into memory.
        """
        with self._enter_train_mode(depth):
            small, large = self._measure_saved_bytes(2), self._measure_saved_bytes(4)
            start = time.perf_counter()  # after the passes above, which may include setup
            self._measure_saved_bytes(4)
            forward_seconds = (time.perf_counter() - start) / 4
            optimizer = self.module.recipe.make_optimizer(self.classifier)
            train_seconds = self._measure_seconds_per_image(
                lambda size: self._step(optimizer, size), forward_seconds
            )
            # validation images may have another size than these
            num_pixels = self.module.spec.input_size[1] * self.module.spec.input_size[2]
            pixel_ratio = num_pixels / (self.images.shape[1] * self.images.shape[2])
            eval_seconds = (
                self._measure_seconds_per_image(self._predict, forward_seconds) * pixel_ratio
            )
            return StepCost(
                **self._compute_memory(depth, small, large, optimizer),
                train_seconds_per_image=train_seconds,
                eval_seconds_per_image=eval_seconds,
            )

    def measure_memory(self, depth: int) -> StepMemory:
        """Measure the memory of a step at a depth, but not its time.

        Raises:
            RuntimeError: Not even four images fit into memory.
        """
        with self._enter_train_mode(depth):
            small, large = self._measure_saved_bytes(2), self._measure_saved_bytes(4)
            optimizer = self.module.recipe.make_optimizer(self.classifier)
            self._step(optimizer, 2)  # creates the optimizer's state
            return StepMemory(**self._compute_memory(depth, small, large, optimizer))

    def measure_layers(self, depth: int) -> tuple[LayerCost, ...]:
        """Measure what each layer computes and keeps in a step at a depth, in their order.

        The tensors kept are those of ``measure``, of which each belongs to one layer or the loss.

        Raises:
            RuntimeError: Not even four images fit into memory.
        """
        with self._enter_train_mode(depth):
            return measure_layers(self.classifier.network, self._compute_loss, self._infer)

    @contextmanager
    def _enter_train_mode(self, depth: int) -> Iterator[None]:
        """Put the copy into training mode at a depth, and restore torch's generators afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.classifier.set_depth(depth)
            self.classifier.train()
            yield

    def _compute_memory(
        self,
        depth: int,
        small_batch_bytes: int,
        large_batch_bytes: int,
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, int]:
        """Compute the fields of ``StepMemory`` from the saved bytes of 2 and of 4 images."""
        tensors = [*self.classifier.parameters(), *self.classifier.buffers()]
        trained = [p for p in self.classifier.parameters() if p.requires_grad]
        state = [t for entry in optimizer.state.values() for t in entry.values()]
        bytes_per_image = (large_batch_bytes - small_batch_bytes) // 2
        return {
            "depth": depth,
            "parameter_bytes": _count_bytes(tensors) * (1 if self.module.average is None else 2),
            "gradient_bytes": _count_bytes(trained),
            "optimizer_bytes": _count_bytes([t for t in state if isinstance(t, Tensor)]),
            "activation_bytes": bytes_per_image,
            "fixed_bytes": max(0, small_batch_bytes - 2 * bytes_per_image),
        }

    def _measure_saved_bytes(self, batch_size: int) -> int:
        """Measure the bytes that autograd saves for the backward pass of a batch."""
        parameter_pointers = {p.untyped_storage().data_ptr() for p in self.classifier.parameters()}
        saved: WeakSet[_SavedTensor] = WeakSet()

        def pack(tensor: Tensor) -> _SavedTensor:
            entry = _SavedTensor(tensor)
            saved.add(entry)
            return entry

        with saved_tensors_hooks(pack, lambda entry: entry.tensor):
            loss = self._compute_loss(batch_size)
            self._synchronize()
        storages = [entry.tensor.untyped_storage() for entry in saved]
        bytes_of = {storage.data_ptr(): storage.nbytes() for storage in storages}
        del loss
        return sum(size for pointer, size in bytes_of.items() if pointer not in parameter_pointers)

    def _compute_loss(self, batch_size: int) -> Tensor:
        rows = torch.arange(batch_size, device=self.device) % len(self.images)
        pixels = normalise(self.images[rows], mean=self.module.spec.mean, std=self.module.spec.std)
        with autocast(self.precision, self.device):
            logits = self.classifier(pixels).float()
        loss: Tensor = self.module.recipe.criterion_schedule(0)(logits, self.labels[rows])
        return loss

    def _step(self, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        self._compute_loss(batch_size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def _infer(self, batch_size: int) -> None:
        with eval_mode(self.classifier):
            self._compute_loss(batch_size)

    def _predict(self, batch_size: int) -> None:
        self.classifier.eval()
        with torch.inference_mode():
            self._compute_loss(batch_size)
        self.classifier.train()

    def _measure_seconds_per_image(
        self, step_fn: Callable[[int], None], forward_seconds: float
    ) -> float:
        """Measure the seconds per image of ``step_fn``: the minimum of a few calls after warmup."""
        max_images = math.floor(self.max_step_seconds / _FORWARDS_PER_STEP / forward_seconds)
        size = max(2, min(self.batch_size, max(max_images, _MIN_IMAGES)))
        while True:
            try:
                return self._time_steps(step_fn, size)
            except Exception as error:
                if size <= 2 or not is_out_of_memory(error):
                    raise
            size //= 2
            release_memory()

    def _time_steps(self, step_fn: Callable[[int], None], batch_size: int) -> float:
        min_seconds, first_start = math.inf, time.perf_counter()
        for number in range(1 + _NUM_TIMED_STEPS):  # the first one is the warmup
            start = time.perf_counter()
            step_fn(batch_size)
            self._synchronize()
            if number:
                min_seconds = min(min_seconds, time.perf_counter() - start)
            total_seconds = time.perf_counter() - first_start
            if number and total_seconds > _NUM_TIMED_STEPS * self.max_step_seconds:
                break
        return min_seconds / batch_size

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _SavedTensor:
    """Holder of a tensor, alive as long as autograd saves it for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        # with its graph it would keep itself alive: the node that made it may hold this entry
        self.tensor = tensor.detach()


def _count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
