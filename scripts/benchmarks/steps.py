"""Training steps that are ready to run: a tutorial's, and finetune's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.builders import Training, build_trainer_options
from finetune.data.dataset import Batch
from finetune.models.classifier import normalise
from finetune.training.module import ClassificationModule
from finetune.training.trainer import create_trainer
from finetune.types import Draw

Step = Callable[[], None]


def tutorial_step(backbone: str, batch: Batch, pixels: Tensor, num_classes: int) -> Step:
    """Return the step of a tutorial's loop; ``pixels`` is the batch as its loader would give it."""
    model = timm.create_model(backbone, num_classes=num_classes).to(pixels.device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(model(pixels), batch["label"])
        loss.backward()
        optimizer.step()

    return step


def finetune_step(training: Training, folder: Path, batch: Batch, *, depth: int) -> Step:
    """Return finetune's step with some layer groups trained, in the order of Lightning's loop."""
    options = build_trainer_options(training.config)
    trainer = create_trainer(folder, options, callbacks=[], loggers=[])
    module, precision = training.module, trainer.precision_plugin
    module.to(batch["image"].device)
    _settle(module, batch)
    module.trainer = trainer
    module.train()
    module.classifier.set_depth(depth)
    made: Any = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    def step() -> None:
        with precision.train_step_context():
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        schedule.step()

    return step


def _settle(module: ClassificationModule, batch: Batch) -> None:
    """Set BatchNorm's statistics by a batch, so that no value grows or fades away."""
    network = module.classifier.network
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(normalise(batch["image"], mean=module.mean, std=module.std))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def one_batch(training: Training, *, batch_size: int, device: str) -> Batch:
    """Return a batch of finetune's training data on the device; rows come again in a large one."""
    data = training.data.train
    draws = [Draw(index % len(data), 0, index // len(data)) for index in range(batch_size)]
    batch: Any = {name: value.to(device) for name, value in data.__getitems__(draws).items()}
    return batch
