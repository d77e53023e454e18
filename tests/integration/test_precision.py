"""Every precision that the CPU computes trains with the default optimizer and clipping."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.builders import build_trainer_options
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from tests.support.runs import small_training, write_photos


class Norms(Callback):
    """Keeps the norm of all gradients at each step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.seen.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradients_are_clipped_in_every_precision(
    precision: str, optimizer: str, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    training = small_training(
        photos,
        trainer__precision=precision,
        trainer__gradient_clip_val=1e-3,
        optim__name=optimizer,
        unfreeze__name="all",
    )
    norms = Norms()
    options = build_trainer_options(training.config)
    trainer = create_trainer(tmp_path, options, callbacks=[UnfreezeScheduler(), norms], loggers=[])
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    assert norms.seen
    assert max(norms.seen) <= 1e-3 * 1.01
    assert all(math.isfinite(norm) and norm > 0 for norm in norms.seen)
