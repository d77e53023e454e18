"""Fault injection: points of a run at which a process sends a signal to itself.

A run imports this module on every rank, for its learning-rate schedule
``tests.support.fault_points:linear``. ``FAULT=<point>,<signal number>,<rank>`` in the environment
selects the fault.
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "FAULT"


class FaultPoint(NamedTuple):
    """A function that is called at a point of a run.

    Attributes:
        target: Module and qualified name of the function, separated by a colon.
        is_reached: Whether a call with these arguments is at the point.
        is_after: Whether the signal is sent after the call instead of before it.
    """

    target: str
    is_reached: Callable[..., bool] = lambda *_, **__: True
    is_after: bool = False


def _is_fourth_batch_of_second_epoch(_: Any, trainer: Any, *batch: Any) -> bool:
    # or a later one, if the run was resumed behind it
    return bool(trainer.current_epoch == 1 and batch[-1] >= 3)


def _is_first_validation_batch_of_third_epoch(_: Any, trainer: Any, *batch: Any) -> bool:
    return bool(trainer.current_epoch == 2 and batch[3] == 0)


def _is_later_best_checkpoint(_: Any, checkpoint: Any, path: Any, *__: Any, **___: Any) -> bool:
    return Path(path).name == "best.ckpt" and checkpoint["epoch"] >= 2


POINTS = {
    # while the files of a new run folder are written
    "prepare": FaultPoint(
        "finetune.system.run_folder:write_text", lambda path, *_: Path(path).name == "config.yaml"
    ),
    "probe": FaultPoint("finetune.probe.features.cached_extractor:gather_rows"),
    "mid-epoch": FaultPoint(
        "finetune.training.callbacks.preemption:PreemptionCheckpoint.on_train_batch_end",
        _is_fourth_batch_of_second_epoch,
        is_after=True,
    ),
    "validation": FaultPoint(
        "finetune.training.callbacks.preemption:PreemptionCheckpoint.on_validation_batch_end",
        _is_first_validation_batch_of_third_epoch,
    ),
    # best.ckpt is written, last.ckpt is of an earlier step
    "between best and last": FaultPoint(
        "finetune.training.checkpoint_io:AtomicCheckpointIO.save_checkpoint",
        _is_later_best_checkpoint,
        is_after=True,
    ),
    "final evaluation": FaultPoint("finetune.commands.fit.finalize:evaluate_targets"),
    # while the files of the bundle are written
    "bundle": FaultPoint("finetune.bundle.bundle:render_readme"),
}


def linear(progress: float, *, final_factor: float) -> float:
    """Return the factor of a learning rate that falls linearly."""
    return 1 - (1 - final_factor) * progress


def _install(point: FaultPoint, signum: int) -> None:
    """Replace the function of a point by one that sends the signal, once."""
    module_name, _, name = point.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, attribute = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, attribute)
    is_armed = True

    def call_with_fault(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_armed
        is_reached = is_armed and point.is_reached(*args, **kwargs)
        is_armed = is_armed and not is_reached
        if is_reached and not point.is_after:
            os.kill(os.getpid(), signum)
        result = function(*args, **kwargs)
        if is_reached and point.is_after:
            os.kill(os.getpid(), signum)
        return result

    setattr(owner, attribute, call_with_fault)


def install_from_environment() -> None:
    """Install the fault that the environment selects for this rank."""
    global _is_installed
    if _is_installed:
        return
    if fault := os.environ.get(VARIABLE):
        name, signum, rank = fault.split(",")
        if name in POINTS and os.environ.get("LOCAL_RANK", "0") == rank:
            _install(POINTS[name], int(signum))
            _is_installed = True


_is_installed = False
install_from_environment()
