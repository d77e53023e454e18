"""Training steps: that of a tutorial, and that of finetune."""

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


def create_tutorial_step(backbone: str, batch: Batch, pixels: Tensor, num_classes: int) -> Step:
    """Return the step of a tutorial's loop; ``pixels`` is the batch as its loader returns it."""
    model = timm.create_model(backbone, num_classes=num_classes).to(pixels.device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(model(pixels), batch["label"])
        loss.backward()
        optimizer.step()

    return step


def create_finetune_step(training: Training, folder: Path, batch: Batch, *, depth: int) -> Step:
    """Return the step of finetune at a depth, in the order of Lightning's loop."""
    options = build_trainer_options(training.config)
    trainer = create_trainer(folder, options, callbacks=[], loggers=[])
    module, precision = training.module, trainer.precision_plugin
    module.to(batch["image"].device)
    _set_batch_norm_statistics(module, batch)
    module.trainer = trainer
    module.train()
    module.classifier.set_depth(depth)
    optimizers: Any = module.configure_optimizers()
    optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]

    def step() -> None:
        with precision.train_step_context():
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        schedule.step()

    return step


def _set_batch_norm_statistics(module: ClassificationModule, batch: Batch) -> None:
    """Set BatchNorm's statistics to those of a batch, so that activations keep their scale."""
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


def load_batch(training: Training, *, batch_size: int, device: str) -> Batch:
    """Return a batch of finetune's training data on the device; images repeat in a large one."""
    dataset = training.datamodule.train_dataset
    count = len(dataset)
    draws = [Draw(index % count, 0, index // count) for index in range(batch_size)]
    tensors: dict[str, Any] = dict(dataset.__getitems__(draws))
    batch: Any = {name: tensor.to(device) for name, tensor in tensors.items()}
    result: Batch = batch
    return result
