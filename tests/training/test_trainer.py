"""Checkpoints, strategy, ranks, errors and console output of the trainer."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning_fabric
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from finetune.builders import Training
from finetune.distributed.launch import LaunchInfo
from finetune.errors import RunFolderError, StorageError, TrainingError
from finetune.training.callbacks.checkpoint import RelocatableCheckpoint
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from tests.support.helpers import mount_tiny_disk
from tests.support.runs import (
    assert_same_bits,
    create_small_training,
    load_checkpoint,
    load_weights,
)


def build_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    loggers, launch = settings.pop("loggers", []), settings.pop("launch", None)
    options = TrainerOptions(**{"max_epochs": 2, "monitor": "val/accuracy", **settings})
    return create_trainer(
        folder, options, callbacks=[UnfreezeScheduler(), *callbacks], loggers=loggers, launch=launch
    )


def run(training: Training, folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = build_trainer(folder, *callbacks, **settings)
    last = folder / "checkpoints" / "last.ckpt"
    fit(
        trainer,
        training.module,
        training.datamodule,
        checkpoint_path=last if last.is_file() else None,
    )
    return trainer


def test_fit_full_disk_raises_storage_error_and_keeps_checkpoints(
    animals: Path, tmp_path: Path
) -> None:
    # two checkpoints fit, but no third: each has 1.5 MB of weights and as much momentum
    with mount_tiny_disk(tmp_path / "disk", size="7m") as disk:
        training = create_small_training(animals, optim__name="sgd")
        with pytest.raises(StorageError, match=re.escape(str(disk))):
            run(training, disk, DiskFiller(disk), max_epochs=3)
        assert load_checkpoint(disk)["epoch"] == 0
        assert sorted(file.name for file in (disk / "checkpoints").iterdir()) == [
            "best.ckpt",
            "last.ckpt",
        ]


class DiskFiller(Callback):
    """Callback that fills the disk after the first epoch."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            free = shutil.disk_usage(self.disk).free
            (self.disk / "filler").write_bytes(bytes(max(0, free - 100_000)))


def get_checkpoint_callbacks(trainer: Trainer) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    best, last = (c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))  # type: ignore[attr-defined]
    return best, last


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/macro_f1", "max")])
def test_create_trainer_monitor_sets_mode_of_best_and_early_stopping(
    monitor: str, mode: str, tmp_path: Path
) -> None:
    trainer = build_trainer(tmp_path, monitor=monitor, patience=3)
    best, last = get_checkpoint_callbacks(trainer)
    assert (best.monitor, best.mode, best.filename) == (monitor, mode, "best")
    assert (last.monitor, last.filename) == (None, "last")
    (stopping,) = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))  # type: ignore[attr-defined]
    assert (stopping.monitor, stopping.mode, stopping.patience) == (monitor, mode, 3)


def test_create_trainer_several_processes_use_ddp_without_unused_parameters(tmp_path: Path) -> None:
    assert isinstance(build_trainer(tmp_path).strategy, SingleDeviceStrategy)
    strategy = build_trainer(tmp_path, devices=2).strategy
    assert isinstance(strategy, DDPStrategy)
    assert not strategy._ddp_kwargs.get("find_unused_parameters", False)


def test_create_trainer_takes_ranks_from_launch_not_from_slurm_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "5",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "here",
    }.items():
        monkeypatch.setenv(name, value)
    single = build_trainer(tmp_path)
    assert (single.world_size, single.global_rank) == (1, 0)
    for module in (rank_zero_only, lightning_fabric.utilities.rank_zero.rank_zero_only):
        monkeypatch.setattr(module, "rank", 0)  # restored later: the trainer sets it globally
    # ranks alternate between the nodes; Lightning would compute 1 * 2 + 0 = 2
    launch = LaunchInfo(1, 4, 0, 2, 1, "here", 7, "srun")
    trainer = build_trainer(tmp_path, devices=2, num_nodes=2, launch=launch)
    assert (trainer.world_size, trainer.local_rank, trainer.node_rank) == (4, 0, 1)
    trainer.strategy.set_world_ranks()  # type: ignore[attr-defined]
    assert trainer.global_rank == 1


def test_fit_foreign_hpc_checkpoint_raises_run_folder_error(animals: Path, tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_3.ckpt").write_bytes(b"of another experiment")
    with pytest.raises(RunFolderError, match=r"hpc_ckpt_3\.ckpt"):
        run(create_small_training(animals), tmp_path)


class ScoreReplacer(Callback):
    """Callback that replaces the measured scores by given ones."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        score = torch.tensor(self.scores[trainer.current_epoch])
        trainer.callback_metrics["val/accuracy"].copy_(score)


def test_best_checkpoint_is_kept_while_later_epochs_are_worse(
    animals: Path, tmp_path: Path
) -> None:
    run(create_small_training(animals), tmp_path, ScoreReplacer(0.5, 0.9, 0.2, 0.9), max_epochs=4)
    assert load_checkpoint(tmp_path, "best")["epoch"] == 1
    assert load_checkpoint(tmp_path)["epoch"] == 3


@pytest.mark.parametrize("moved", [False, True])
def test_best_score_survives_resume_in_moved_run_folder(
    moved: bool, animals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "first"
    scores = ScoreReplacer(0.5, 0.9, 0.2, 0.3)
    run(create_small_training(animals, trainer__epochs=4), folder, scores, max_epochs=2)
    before = load_weights(folder, "best")
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
    trainer = run(create_small_training(animals, trainer__epochs=4), folder, scores, max_epochs=4)
    assert load_checkpoint(folder, "best")["epoch"] == 1
    assert_same_bits(load_weights(folder, "best"), before)
    best, _ = get_checkpoint_callbacks(trainer)
    assert isinstance(best, RelocatableCheckpoint)
    assert best.best_model_path == str(folder / "checkpoints" / "best.ckpt")
    assert best.best_model_score == torch.tensor(0.9)


def test_early_stopping_count_survives_resume(animals: Path, tmp_path: Path) -> None:
    scores = ScoreReplacer(0.9, 0.2, 0.3, 0.4, 0.5, 0.6)
    settings: dict[str, Any] = {"patience": 3}
    run(
        create_small_training(animals, trainer__epochs=6),
        tmp_path,
        scores,
        max_epochs=2,
        **settings,
    )
    assert load_checkpoint(tmp_path)["epoch"] == 1
    run(
        create_small_training(animals, trainer__epochs=6),
        tmp_path,
        scores,
        max_epochs=6,
        **settings,
    )
    assert load_checkpoint(tmp_path)["epoch"] == 3


@pytest.mark.parametrize("has_state", [True, False])
def test_early_stopping_switched_on_at_resume_counts_from_the_best_epoch(
    has_state: bool, animals: Path, tmp_path: Path
) -> None:
    scores = ScoreReplacer(0.9, 0.2, 0.3, 0.4, 0.5, 0.6)
    training = create_small_training(animals, trainer__epochs=6)
    run(training, tmp_path, scores, max_epochs=3)  # the best epoch is the first
    if not has_state:  # as an older release, which did not count
        checkpoint = load_checkpoint(tmp_path)
        del checkpoint["callbacks"]["early_stopping"]
        torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    trainer = run(training, tmp_path, scores, max_epochs=6, patience=3)
    (stopping,) = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))  # type: ignore[attr-defined]
    assert stopping.best_score == torch.tensor(0.9)
    assert load_checkpoint(tmp_path)["epoch"] == (3 if has_state else 5)
    assert load_checkpoint(tmp_path, "best")["epoch"] == 0


def test_run_without_patience_goes_on_with_a_metric_that_is_not_finite(
    animals: Path, tmp_path: Path
) -> None:
    nan = float("nan")
    training = create_small_training(animals, trainer__epochs=3)
    run(training, tmp_path, ScoreReplacer(0.5, nan, nan), max_epochs=2)
    assert load_checkpoint(tmp_path)["epoch"] == 1
    run(training, tmp_path, ScoreReplacer(0.5, nan, nan), max_epochs=3, patience=9)
    state = load_checkpoint(tmp_path)["callbacks"]["early_stopping"]
    assert state["stopping_reason"] == EarlyStoppingReason.NON_FINITE_METRIC.value
    # without a patience again, the run has not stopped
    run(training, tmp_path, ScoreReplacer(0.5, nan, nan, 0.4), max_epochs=4)
    state = load_checkpoint(tmp_path)["callbacks"]["early_stopping"]
    assert state["stopping_reason"] == EarlyStoppingReason.NOT_STOPPED.value


class ErrorRaiser(Callback):
    """Callback that raises an error in the middle of an epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def test_fit_ctrl_c_raises_keyboard_interrupt_and_restores_handler(
    animals: Path, tmp_path: Path
) -> None:
    # the background jobs of a shell ignore SIGINT, which is also what Lightning leaves behind
    previous_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run(create_small_training(animals), tmp_path, ErrorRaiser(KeyboardInterrupt()))
    assert signal.signal(signal.SIGINT, previous_handler) is signal.default_int_handler
    assert load_checkpoint(tmp_path)["epoch"] == 0


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [::1]:1: Connection "
        "reset by peer",
        "NCCL error: remote process exited or there was a network error",
        "[gloo] Application timeout caused pair closure",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
        "12000ms for recv operation to complete",
    ],
)
def test_fit_backend_error_of_lost_peer_raises_training_error(
    message: str, animals: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"--resume"):
        run(create_small_training(animals), tmp_path, ErrorRaiser(RuntimeError(message)))


def test_fit_other_error_is_reraised_unchanged(animals: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of my own") as raised:
        run(create_small_training(animals), tmp_path, ErrorRaiser(RuntimeError("of my own")))
    assert not isinstance(raised.value, TrainingError)


def test_fit_prints_nothing(
    animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(create_small_training(animals), tmp_path)
    assert capfd.readouterr() == ("", "")
