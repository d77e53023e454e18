"""Compilation for the batches of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.models.classifier import ImageClassifier
from finetune.training.callbacks.network_compiler import NetworkCompiler
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from tests.support.runs import create_small_training
from tests.training.callbacks.reporting import CallRecorder, train_with_callbacks


@pytest.mark.parametrize("reason", [None, "RuntimeError: no compiler"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_network_compiler_example_equals_first_training_batch_of_each_depth(
    precision: str,
    reason: str | None,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples: list[tuple[Any, ...]] = []
    batches: list[tuple[Any, ...]] = []

    def describe_input(model: ImageClassifier, images: Tensor) -> tuple[Any, ...]:
        uses_autocast = torch.is_autocast_enabled("cpu")
        return (
            images.shape,
            images.stride(),
            images.dtype,
            model.training,
            model.depth,
            uses_autocast,
        )

    def compile_for_training(self: ImageClassifier, example: Tensor) -> str | None:
        examples.append(describe_input(self, example))
        return reason

    forward = ImageClassifier.forward

    def record_forward(self: ImageClassifier, images: Tensor) -> Tensor:
        batches.append(describe_input(self, images))
        return forward(self, images)

    monkeypatch.setattr("torch.compiler.reset", lambda: None)  # which would import the compiler
    monkeypatch.setattr(ImageClassifier, "compile_for_training", compile_for_training)
    monkeypatch.setattr(ImageClassifier, "forward", record_forward)
    training = create_small_training(
        animals,
        trainer__precision=precision,
        unfreeze__name="head_first",
        unfreeze__params={"epochs": 1},
    )
    recorder = CallRecorder()
    train_with_callbacks(
        training,
        tmp_path,
        UnfreezeScheduler(),
        NetworkCompiler(recorder, batch_size=8, size_schedule=lambda _: (32, 32)),
    )
    calls: list[tuple[str, Any]] = [("start", ("compiling the network", 1)), ("finish", None)]
    training_batches = [description for description in batches if description[3]]
    assert len(training_batches) == 2 * 3
    if reason is None:
        assert examples == [training_batches[0], training_batches[3]]  # the first of each depth
        assert recorder.calls == 2 * calls
    else:
        assert examples == [training_batches[0]], "a failed compilation is not repeated"
        *first_calls, (kind, message) = recorder.calls
        assert (first_calls, kind) == (calls, "note")
        assert "trainer.compile" in message
        assert reason in message
