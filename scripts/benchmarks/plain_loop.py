"""The same training as finetune's, written out in PyTorch; and a reporter that times both."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from rounds import training_of
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from finetune.build import Training, with_cache
from finetune.config.schema import Config
from finetune.data.dataset import Batch, create_loader
from finetune.data.sampler import EpochSampler
from finetune.models.classifier import normalise
from finetune.types import Reporter


@dataclass
class Epoch:
    """When things happened in an epoch, in seconds.

    Attributes:
        begun: Before the first batch is asked for.
        ticks: After each batch, of the training and then of the validation.
        ended: When its numbers are known; checkpoints are written after that.
    """

    begun: float
    ticks: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Training and validation."""
        return self.ended - self.begun


class Stopwatch(Reporter):
    """Notes when each epoch and each of its batches ends."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._running = False

    def start(self, task: str, total: int) -> None:
        """Begin an epoch, and only that."""
        self._running = task.startswith("epoch ")
        if self._running:
            self.epochs.append(Epoch(time.perf_counter()))

    def advance(self, steps: int = 1) -> None:
        """Note the end of a batch."""
        if self._running:
            self.epochs[-1].ticks.append(time.perf_counter())

    def epoch(self, row: Any) -> None:
        """End the epoch."""
        self._running = False
        self.epochs[-1].ended = time.perf_counter()

    @property
    def warm(self) -> list[Epoch]:
        """All epochs but the first."""
        return self.epochs[1:]

    @property
    def whole_seconds(self) -> list[float]:
        """Each epoch but the first, from the end of the one before: its checkpoints are in it."""
        ends = [epoch.ended for epoch in self.epochs]
        return [after - before for before, after in pairwise(ends)]


Run = Callable[[Stopwatch], Any]


@dataclass(frozen=True)
class Loaders:
    """Batches of training and validation, and the sampler that must be told of the epoch."""

    train: Iterable[Batch]
    val: Iterable[Batch]
    sampler: EpochSampler | None = None


def file_loaders(training: Training) -> Loaders:
    """Return loaders of finetune's own data, in the order in which finetune reads them."""
    data = with_cache(training, reporter=Reporter()).data
    sampler = EpochSampler(
        data.weights,
        num_images=len(data.train),
        batch_size=data.loading.batch_size,
        seed=data.loading.seed,
    )
    return Loaders(_loader(training, data.train, sampler), _loader(training, data.val), sampler)


def _loader(training: Training, dataset: Any, sampler: EpochSampler | None = None) -> Any:
    loader: DataLoader[Batch] = create_loader(
        dataset,
        batch_size=training.batch_size,
        num_workers=int(training.config.data.num_workers),
        sampler=sampler,
        pin_memory=training.config.trainer.accelerator == "cuda",
    )
    return loader


def synthetic_loaders(training: Training) -> Loaders:
    """Return as many batches as there are, but the same ones always, on the device already."""
    device = training.config.trainer.accelerator
    loaders = file_loaders(training)
    train, val = (_moved(next(iter(part)), device) for part in (loaders.train, loaders.val))
    return Loaders([train] * len(loaders.train), [val] * len(loaders.val))  # type: ignore[arg-type]


def plain_steps(training: Training, loaders: Loaders, *, watch: Reporter) -> Iterator[None]:
    """Train for the epochs of the config, and yield after each batch of training and validation.

    No Lightning, no checkpoints, accuracy the one metric, AdamW as one group.

    Args:
        training: Gives the network, the loss and the schedules.
        loaders: Of batches.
        watch: Told what Lightning would tell it.
    """
    recipe, config = training.module.recipe, training.config.trainer
    module = training.module.to(config.accelerator)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    schedule = LambdaLR(optimizer, recipe.lr_factor)
    for epoch in range(int(config.epochs)):
        watch.start(f"epoch {epoch + 1}", 0)
        module.classifier.set_depth(recipe.depth_at(epoch))
        module.train()
        if loaders.sampler is not None:
            loaders.sampler.set_epoch(epoch)
        losses: list[Tensor] = []
        for batch in loaders.train:
            batch = _moved(batch, config.accelerator)
            with _autocast(training):
                loss = recipe.criterion(_logits(training, batch), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            watch.advance()
            yield
        right: list[Tensor] = []
        module.eval()
        for batch in loaders.val:
            right.append(validate(training, batch))
            watch.advance()
            yield
        loss, accuracy = torch.stack(losses).mean(), torch.cat(right).mean()
        watch.epoch({"train/loss": float(loss), "val/accuracy": float(accuracy)})


@torch.inference_mode()
def validate(training: Training, batch: Batch) -> Tensor:
    """Return 1 for each image of a batch whose class is right, shape (B,)."""
    batch = _moved(batch, training.config.trainer.accelerator)
    with _autocast(training):
        return (_logits(training, batch).argmax(1) == batch["label"]).float()


def run_plain(
    config: Config, make_loaders: Callable[[Training], Loaders], watch: Stopwatch
) -> None:
    """Build a new training and run the plain loop on it."""
    training = training_of(config)
    for _ in plain_steps(training, make_loaders(training), watch=watch):
        pass


def watched(run: Run) -> Stopwatch:
    """Return the times of a run."""
    watch = Stopwatch()
    run(watch)
    return watch


def _logits(training: Training, batch: Batch) -> Tensor:
    module = training.module
    pixels = normalise(batch["image"], mean=module.mean, std=module.std, colour=batch.get("colour"))
    logits: Tensor = module.classifier(pixels)
    return logits.float()


def _autocast(training: Training) -> torch.autocast:
    config = training.config.trainer
    enabled = config.precision == "bf16-mixed"
    return torch.autocast(config.accelerator, torch.bfloat16, enabled=enabled)


def _moved(batch: Batch, device: str) -> Batch:
    moved: Any = {
        name: value.to(device, non_blocking=device != "cpu")  # type: ignore[attr-defined]
        for name, value in batch.items()
    }
    return moved
