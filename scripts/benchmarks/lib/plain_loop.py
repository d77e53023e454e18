"""The training of finetune as a plain PyTorch loop."""

import os
from collections.abc import Collection, Iterator
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
    """Batches of training and validation, and the sampler whose epoch must be set."""

    train: Collection[Batch]
    val: Collection[Batch]
    sampler: EpochSampler | None = None


def create_file_loaders(training: Training) -> Loaders:
    """Return loaders of finetune's datasets, in the same order."""
    datamodule = enable_cache(training, reporter=Reporter()).datamodule
    train, val = datamodule.train_dataset, datamodule.val_dataset
    sampler = EpochSampler(
        datamodule.sampling_schedule,
        num_images=len(train),
        batch_size=datamodule.loader_options.batch_size,
        seed=datamodule.loader_options.seed,
    )
    return Loaders(_create_loader(training, train, sampler), _create_loader(training, val), sampler)


def _create_loader(training: Training, dataset: Any, sampler: EpochSampler | None = None) -> Any:
    loader: DataLoader[Batch] = create_loader(
        dataset,
        batch_size=training.batch_size,
        num_workers=training.config.data.num_workers,
        sampler=sampler,
        pin_memory=training.config.trainer.accelerator == "cuda",
    )
    return loader


def create_synthetic_loaders(training: Training) -> Loaders:
    """Return as many batches as the data have, all the same and already on the device."""
    device = training.config.trainer.accelerator
    loaders = create_file_loaders(training)
    train, val = (_move(next(iter(part)), device) for part in (loaders.train, loaders.val))
    return Loaders([train] * len(loaders.train), [val] * len(loaders.val))


def iter_plain_steps(training: Training, loaders: Loaders, *, watch: Reporter) -> Iterator[bool]:
    """Train; yield False after each batch and True after each epoch.

    Without Lightning and checkpoints; accuracy is the only metric, AdamW has one parameter group.

    Args:
        training: Training with the network, the loss and the schedules.
        loaders: Loaders of batches.
        watch: Reporter of epochs and batches, as in finetune.
    """
    recipe, config = training.module.recipe, training.config.trainer
    module = training.module.to(config.accelerator)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    schedule = LambdaLR(optimizer, recipe.lr_lambda)
    for epoch in range(config.epochs):
        watch.start(f"epoch {epoch + 1}", 0)
        module.classifier.set_depth(recipe.depth_schedule(epoch))
        module.train()
        if loaders.sampler is not None:
            loaders.sampler.set_epoch(epoch)
        losses: list[Tensor] = []
        for batch in loaders.train:
            batch = _move(batch, config.accelerator)
            with _autocast(training):
                loss = recipe.criterion_schedule(epoch)(
                    _compute_logits(training, batch), batch["label"]
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip_val)
            with _without_nvml():
                optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            watch.advance()
            yield False
        correct: list[Tensor] = []
        module.eval()
        for batch in loaders.val:
            correct.append(validate(training, batch))
            watch.advance()
            yield False
        loss, accuracy = torch.stack(losses).mean(), torch.cat(correct).mean()
        watch.show_epoch({"train/loss": float(loss), "val/accuracy": float(accuracy)})
        yield True


@contextmanager
def _without_nvml() -> Iterator[None]:
    """Undo a setting of Lightning with which optimizers query the driver in each step."""
    before = os.environ.pop(NVML_CHECK, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[NVML_CHECK] = before


@torch.inference_mode()
def validate(training: Training, batch: Batch) -> Tensor:
    """Return 1 for each correctly classified image of a batch, shape (B,)."""
    batch = _move(batch, training.config.trainer.accelerator)
    with _autocast(training):
        return (_compute_logits(training, batch).argmax(1) == batch["label"]).float()


def _compute_logits(training: Training, batch: Batch) -> Tensor:
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


def _move(batch: Batch, device: str) -> Batch:
    tensors: dict[str, Any] = dict(batch)
    moved: Any = {
        name: tensor.to(device, non_blocking=device != "cpu") for name, tensor in tensors.items()
    }
    result: Batch = moved
    return result
