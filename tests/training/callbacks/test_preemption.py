"""Mid-epoch saves: at intervals, and before a run stops for a signal."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune.distributed import signals
from finetune.distributed.signals import StopRequest
from finetune.training.callbacks.preemption import PreemptionCheckpoint
from tests.support.processes import open_group, run_on_ranks

PATH = Path("last.ckpt")


class FakeTrainer(SimpleNamespace):
    """The part of a trainer that the callback uses; records the saves."""

    def __init__(self, *, accumulate: int = 1, is_global_zero: bool = True) -> None:
        device = SimpleNamespace(root_device=SimpleNamespace(type="cpu"))
        super().__init__(
            accumulate_grad_batches=accumulate, is_global_zero=is_global_zero, strategy=device
        )
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


def make_callback(
    every_minutes: float | None, clock: Callable[[], float] = lambda: 0.0
) -> PreemptionCheckpoint:
    return PreemptionCheckpoint(
        PATH, every_minutes=every_minutes, timeout=timedelta(minutes=1), clock=clock
    )


def end_batch(callback: PreemptionCheckpoint, trainer: FakeTrainer, index: int) -> None:
    callback.on_train_batch_end(cast(Any, trainer), cast(Any, None), None, None, index)


def test_preemption_checkpoint_interval_elapsed_saves_after_step() -> None:
    seconds = 0.0
    callback, trainer = make_callback(1.0, lambda: seconds), FakeTrainer(accumulate=2)
    num_saves = []
    for index, seconds in enumerate([30.0, 59.0, 60.0, 61.0, 119.0, 120.0, 121.0]):  # noqa: B007
        end_batch(callback, trainer, index)
        num_saves.append(len(trainer.saved))
    # steps end after every second micro-batch; the interval restarts at the save at 61 s
    assert num_saves == [0, 0, 0, 1, 1, 1, 1]
    callback.on_train_epoch_start(cast(Any, trainer), cast(Any, None))
    seconds = 180.0
    end_batch(callback, trainer, 1)
    assert trainer.saved == [PATH], "the interval restarts with the epoch"
    seconds = 181.0
    end_batch(callback, trainer, 3)
    assert trainer.saved == [PATH, PATH]


def test_preemption_checkpoint_without_interval_never_saves() -> None:
    callback, trainer = make_callback(None, lambda: 1e9), FakeTrainer()
    end_batch(callback, trainer, 0)
    assert trainer.saved == []


def test_preemption_checkpoint_other_rank_is_not_due_by_own_clock() -> None:
    seconds = 0.0
    callback = make_callback(1.0, lambda: seconds)
    trainer = FakeTrainer(is_global_zero=False)
    seconds = 1e9
    end_batch(callback, trainer, 0)
    assert trainer.saved == []


@pytest.mark.parametrize("is_validation", [False, True])
def test_preemption_checkpoint_signal_saves_once_and_stops(is_validation: bool) -> None:
    callback, trainer = make_callback(None), FakeTrainer(accumulate=2)
    with (  # noqa: PT012
        pytest.raises(StopRequest, match="SIGTERM"),
        signals.allow_interrupts(),
        signals.defer(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        end_batch(callback, trainer, 0)  # in the middle of a step
        assert trainer.saved == []
        if is_validation:
            callback.on_validation_batch_end(
                cast(Any, trainer), cast(Any, None), None, None, batch_idx=0
            )
        end_batch(callback, trainer, 1)
    assert trainer.saved == [PATH]


def stop_rank(rank: int) -> tuple[int, int]:
    """Return the step after which a rank stops, and its saves; rank 1 has a signal in step 2."""
    callback, trainer = make_callback(None), FakeTrainer(is_global_zero=rank == 0)
    step = 0
    try:
        with open_group(), signals.allow_interrupts(), signals.defer():
            callback.on_fit_start(cast(Any, trainer), cast(Any, None))
            for step in range(6):
                if (rank, step) == (1, 2):
                    os.kill(os.getpid(), signal.SIGUSR1)
                end_batch(callback, trainer, step)
    except StopRequest:
        pass
    return step, len(trainer.saved)


@pytest.mark.runs
def test_preemption_checkpoint_signal_on_one_rank_stops_all_after_same_step() -> None:
    # the ranks learn of it one step later
    assert run_on_ranks(2, stop_rank) == [(3, 1), (3, 1)]
