"""Gradient clipping in every precision of the CPU, with both default optimizers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.builders import build_trainer_options
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from tests.support.runs import create_small_training, write_photos


class GradientNormRecorder(Callback):
    """Records the total gradient norm of each step, as the optimizer gets it."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradient_clipping_limits_the_norm_in_every_precision(
    precision: str, optimizer: str, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    training = create_small_training(
        photos,
        trainer__precision=precision,
        trainer__gradient_clip_val=1e-3,
        optim__name=optimizer,
        unfreeze__name="all",
    )
    recorder = GradientNormRecorder()
    options = build_trainer_options(training.config)
    trainer = create_trainer(
        tmp_path, options, callbacks=[UnfreezeScheduler(), recorder], loggers=[]
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    assert recorder.norms
    assert max(recorder.norms) <= 1e-3 * 1.01
    assert all(math.isfinite(norm) and norm > 0 for norm in recorder.norms)
