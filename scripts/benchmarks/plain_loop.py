"""The same training as finetune's, written out in PyTorch."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from finetune.builders import Training, enable_cache
from finetune.data.dataset import Batch, create_loader
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.models.classifier import normalise
from finetune.types import Reporter

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@dataclass(frozen=True)
class Loaders:
    """Batches of training and validation, and the sampler that must be told of the epoch."""

    train: Iterable[Batch]
    val: Iterable[Batch]
    sampler: EpochSampler | None = None


def file_loaders(training: Training) -> Loaders:
    """Return loaders of finetune's own data, in the order in which finetune reads them."""
    data = enable_cache(training, reporter=Reporter()).data
    sampler = EpochSampler(
        data.sampling,
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


def plain_steps(training: Training, loaders: Loaders, *, watch: Reporter) -> Iterator[bool]:
    """Train, and yield after each batch, and True after each epoch.

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
                loss = recipe.criterion_at(epoch)(_logits(training, batch), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            with _without_nvml():
                optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            watch.advance()
            yield False
        right: list[Tensor] = []
        module.eval()
        for batch in loaders.val:
            right.append(validate(training, batch))
            watch.advance()
            yield False
        loss, accuracy = torch.stack(losses).mean(), torch.cat(right).mean()
        watch.epoch({"train/loss": float(loss), "val/accuracy": float(accuracy)})
        yield True


@contextmanager
def _without_nvml() -> Iterator[None]:
    """Undo what importing Lightning does to torch: its optimizers ask the driver in each step."""
    before = os.environ.pop(NVML_CHECK, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[NVML_CHECK] = before


@torch.inference_mode()
def validate(training: Training, batch: Batch) -> Tensor:
    """Return 1 for each image of a batch whose class is right, shape (B,)."""
    batch = _moved(batch, training.config.trainer.accelerator)
    with _autocast(training):
        return (_logits(training, batch).argmax(1) == batch["label"]).float()


def _logits(training: Training, batch: Batch) -> Tensor:
    module = training.module
    pixels = normalise(
        batch["image"], mean=module.mean, std=module.std, color_matrix=batch.get("color_matrix")
    )
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
