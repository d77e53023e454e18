"""What a training step costs in memory and time, measured on a copy before the first epoch."""

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
from finetune.models.classifier import ImageClassifier, normalise
from finetune.system.hardware import autocast, is_out_of_memory, release_memory
from finetune.training.module import ClassificationModule

_MAX_STEP_SECONDS = 1.0
_MIN_IMAGES = 4  # fewer would not keep the cores busy
_NUM_TIMED_STEPS = 3
_FORWARDS_PER_STEP = 3.5


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a step needs at one unfreeze depth, in one process.

    Attributes:
        depth: Layer groups that train.
        parameter_bytes: Of all parameters and buffers, and of their average where one is kept.
        gradient_bytes: Of what trains.
        optimizer_bytes: State of the optimizer after a step.
        activation_bytes: Kept for the backward pass, an image.
        fixed_bytes: Kept for the backward pass, whatever the batch.
    """

    depth: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    fixed_bytes: int

    def compute_total_bytes(self, batch_size: int) -> int:
        """Return the memory of a step, without what the libraries work with in between."""
        still = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes
        return still + self.fixed_bytes + self.activation_bytes * batch_size


@dataclass(frozen=True, slots=True)
class StepCost(StepMemory):
    """What a step costs at one unfreeze depth, in one process: its memory, and its time.

    Attributes:
        train_seconds_per_image: Forward, backward and optimizer, an image.
        eval_seconds_per_image: Forward alone, an image.
    """

    train_seconds_per_image: float
    eval_seconds_per_image: float


class StepProfiler:
    """Takes steps on a copy of a module's network.

    The module, its optimizer and torch's generators stay as they were.

    Args:
        module: What will train.
        batch: Training images.
        batch_size: Images of a step in this process.
        device: Where.
        precision: As Lightning names it.
    """

    def __init__(
        self,
        module: ClassificationModule,
        batch: Batch,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.module = module
        self.classifier: ImageClassifier = copy.deepcopy(module.classifier).to(device)
        self.images = batch["image"].to(device)
        self.labels = batch["label"].to(device)
        self.batch_size = batch_size
        self.device = device
        self.precision = precision

    def measure(self, depth: int) -> StepCost:
        """Return what a step costs at a depth.

        Raises:
            RuntimeError: Not even four images fit into the memory.
        """
        with self._enter_train_mode(depth):
            small, large = self._measure_saved_bytes(2), self._measure_saved_bytes(4)
            start = time.perf_counter()  # the passes before it may have set up much
            self._measure_saved_bytes(4)
            forward = (time.perf_counter() - start) / 4
            optimizer = self.module.recipe.make_optimizer(self.classifier)
            train_seconds = self._measure_seconds_per_image(
                lambda size: self._step(optimizer, size), forward
            )
            # other images than these are seen in validation
            pixels = self.module.spec.input_size[1] * self.module.spec.input_size[2]
            larger = pixels / (self.images.shape[1] * self.images.shape[2])
            eval_seconds = self._measure_seconds_per_image(self._predict, forward) * larger
            return StepCost(
                **self._compute_memory(depth, small, large, optimizer),
                train_seconds_per_image=train_seconds,
                eval_seconds_per_image=eval_seconds,
            )

    def measure_memory(self, depth: int) -> StepMemory:
        """Return what a step needs at a depth, without taking its time.

        Raises:
            RuntimeError: Not even four images fit into the memory.
        """
        with self._enter_train_mode(depth):
            small, large = self._measure_saved_bytes(2), self._measure_saved_bytes(4)
            optimizer = self.module.recipe.make_optimizer(self.classifier)
            self._step(optimizer, 2)  # which makes its state
            return StepMemory(**self._compute_memory(depth, small, large, optimizer))

    @contextmanager
    def _enter_train_mode(self, depth: int) -> Iterator[None]:
        """Let the copy train at a depth in the block; torch's generators stay as they were."""
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
        """Return the numbers of ``StepMemory``, from what 2 and 4 images keep."""
        tensors = [*self.classifier.parameters(), *self.classifier.buffers()]
        trained = [p for p in self.classifier.parameters() if p.requires_grad]
        state = [t for entry in optimizer.state.values() for t in entry.values()]
        slope = (large_batch_bytes - small_batch_bytes) // 2
        return {
            "depth": depth,
            "parameter_bytes": _count_bytes(tensors) * (1 if self.module.average is None else 2),
            "gradient_bytes": _count_bytes(trained),
            "optimizer_bytes": _count_bytes([t for t in state if isinstance(t, Tensor)]),
            "activation_bytes": slope,
            "fixed_bytes": max(0, small_batch_bytes - 2 * slope),
        }

    def _measure_saved_bytes(self, batch_size: int) -> int:
        """Return the bytes of everything that the backward pass of some images would need."""
        own = {p.untyped_storage().data_ptr() for p in self.classifier.parameters()}
        saved: WeakSet[_SavedTensor] = WeakSet()

        def keep(tensor: Tensor) -> _SavedTensor:
            entry = _SavedTensor(tensor)
            saved.add(entry)
            return entry

        with saved_tensors_hooks(keep, lambda entry: entry.tensor):
            loss = self._compute_loss(batch_size)
            self._synchronize()
        storages = [entry.tensor.untyped_storage() for entry in saved]
        kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
        del loss
        return sum(num_bytes for place, num_bytes in kept.items() if place not in own)

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

    def _predict(self, batch_size: int) -> None:
        self.classifier.eval()
        with torch.inference_mode():
            self._compute_loss(batch_size)
        self.classifier.train()

    def _measure_seconds_per_image(
        self, step_fn: Callable[[int], None], forward_seconds: float
    ) -> float:
        """Return the seconds an image of ``step_fn``: the least of a few, after one that warms up."""
        affordable = math.floor(_MAX_STEP_SECONDS / _FORWARDS_PER_STEP / forward_seconds)
        size = max(2, min(self.batch_size, max(affordable, _MIN_IMAGES)))
        while True:
            try:
                return self._time_steps(step_fn, size)
            except Exception as error:
                if size <= 2 or not is_out_of_memory(error):
                    raise
            size //= 2
            release_memory()

    def _time_steps(self, step_fn: Callable[[int], None], batch_size: int) -> float:
        least, began = math.inf, time.perf_counter()
        for number in range(1 + _NUM_TIMED_STEPS):
            start = time.perf_counter()
            step_fn(batch_size)
            self._synchronize()
            if number:
                least = min(least, time.perf_counter() - start)
            if number and time.perf_counter() - began > _NUM_TIMED_STEPS * _MAX_STEP_SECONDS:
                break
        return least / batch_size

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _SavedTensor:
    """A tensor for as long as autograd keeps it for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
