"""Checkpoints are whole or absent, the best score survives, and the console stays quiet."""

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
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from finetune.builders import Training
from finetune.distributed.launch import LaunchInfo
from finetune.errors import RunFolderError, StorageError, TrainingError
from finetune.training.callbacks.checkpoint import RelocatableCheckpoint
from finetune.training.callbacks.freeze_layers import UnfreezeScheduler
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from tests.support.helpers import tiny_disk
from tests.support.runs import assert_same_bits, checkpoint, small_training, weights


def trainer_in(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    loggers, launch = settings.pop("loggers", []), settings.pop("launch", None)
    options = TrainerOptions(**{"epochs": 2, "monitor": "val/accuracy", **settings})
    return create_trainer(
        folder, options, callbacks=[UnfreezeScheduler(), *callbacks], loggers=loggers, launch=launch
    )


def run(training: Training, folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = trainer_in(folder, *callbacks, **settings)
    last = folder / "checkpoints" / "last.ckpt"
    fit(
        trainer,
        training.module,
        training.datamodule,
        checkpoint_path=last if last.is_file() else None,
    )
    return trainer


def test_a_disk_that_fills_during_training_ends_it_with_the_run_whole(
    animals: Path, tmp_path: Path
) -> None:
    # two checkpoints fit, a third beside them does not: 1.5 MB of weights, as much of momentum
    with tiny_disk(tmp_path / "disk", size="7m") as disk:
        training = small_training(animals, optim__name="sgd")
        with pytest.raises(StorageError, match="Make room there"):
            run(training, disk, Filling(disk), epochs=3)
        assert checkpoint(disk)["epoch"] == 0
        assert sorted(file.name for file in (disk / "checkpoints").iterdir()) == [
            "best.ckpt",
            "last.ckpt",
        ]


class Filling(Callback):
    """Fills the disk after the first epoch."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            free = shutil.disk_usage(self.disk).free
            (self.disk / "filler").write_bytes(bytes(max(0, free - 100_000)))


def kept(trainer: Trainer) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    best, last = (c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))  # type: ignore[attr-defined]
    return best, last


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/macro_f1", "max")])
def test_the_best_is_the_smallest_loss_or_the_largest_score(
    monitor: str, mode: str, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, monitor=monitor, early_stopping=3)
    best, last = kept(trainer)
    assert (best.monitor, best.mode, best.filename) == (monitor, mode, "best")
    assert (last.monitor, last.filename) == (None, "last")
    (stopping,) = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))  # type: ignore[attr-defined]
    assert (stopping.monitor, stopping.mode, stopping.patience) == (monitor, mode, 3)


def test_several_processes_are_a_ddp_that_reduces_what_trains_alone(tmp_path: Path) -> None:
    assert isinstance(trainer_in(tmp_path).strategy, SingleDeviceStrategy)
    strategy = trainer_in(tmp_path, devices=2).strategy
    assert isinstance(strategy, DDPStrategy)
    assert not strategy._ddp_kwargs.get("find_unused_parameters", False)


def test_lightning_takes_the_ranks_of_the_launch_and_not_those_it_finds(
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
    alone = trainer_in(tmp_path)
    assert (alone.world_size, alone.global_rank) == (1, 0)
    for places in (rank_zero_only, lightning_fabric.utilities.rank_zero.rank_zero_only):
        monkeypatch.setattr(places, "rank", 0)  # what follows sets it for the whole process
    # ranks that go round the machines, which Lightning would count as 1 * 2 + 0 = 2
    launch = LaunchInfo(1, 4, 0, 2, 1, "here", 7, "srun")
    trainer = trainer_in(tmp_path, devices=2, num_nodes=2, launch=launch)
    assert (trainer.world_size, trainer.local_rank, trainer.node_rank) == (4, 0, 1)
    trainer.strategy.set_world_ranks()  # type: ignore[attr-defined]
    assert trainer.global_rank == 1


def test_a_checkpoint_that_lightning_would_take_up_by_itself_is_refused(
    animals: Path, tmp_path: Path
) -> None:
    (tmp_path / "hpc_ckpt_3.ckpt").write_bytes(b"of another experiment")
    with pytest.raises(RunFolderError, match=r"hpc_ckpt_3\.ckpt is no checkpoint of finetune"):
        run(small_training(animals), tmp_path)


class Scores(Callback):
    """Puts chosen scores in the place of the measured ones."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        score = torch.tensor(self.scores[trainer.current_epoch])
        trainer.callback_metrics["val/accuracy"].copy_(score)


def test_best_is_kept_while_later_epochs_are_worse(animals: Path, tmp_path: Path) -> None:
    run(small_training(animals), tmp_path, Scores(0.5, 0.9, 0.2, 0.9), epochs=4)
    assert checkpoint(tmp_path, "best")["epoch"] == 1
    assert checkpoint(tmp_path)["epoch"] == 3


@pytest.mark.parametrize("moved", [False, True])
def test_the_best_score_is_known_after_a_resume_also_where_the_folder_was_moved(
    moved: bool, animals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "first"
    scores = Scores(0.5, 0.9, 0.2, 0.3)
    run(small_training(animals, trainer__epochs=4), folder, scores, epochs=2)
    before = weights(folder, "best")
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
    trainer = run(small_training(animals, trainer__epochs=4), folder, scores, epochs=4)
    assert checkpoint(folder, "best")["epoch"] == 1
    assert_same_bits(weights(folder, "best"), before)
    best, _ = kept(trainer)
    assert isinstance(best, RelocatableCheckpoint)
    assert best.best_model_path == str(folder / "checkpoints" / "best.ckpt")
    assert best.best_model_score == torch.tensor(0.9)


def test_early_stopping_counts_over_a_resume(animals: Path, tmp_path: Path) -> None:
    scores = Scores(0.9, 0.2, 0.3, 0.4, 0.5, 0.6)
    settings: dict[str, Any] = {"early_stopping": 3}
    run(small_training(animals, trainer__epochs=6), tmp_path, scores, epochs=2, **settings)
    assert checkpoint(tmp_path)["epoch"] == 1
    run(small_training(animals, trainer__epochs=6), tmp_path, scores, epochs=6, **settings)
    assert checkpoint(tmp_path)["epoch"] == 3


class Raises(Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def test_ctrl_c_comes_out_as_such_and_can_be_pressed_again(animals: Path, tmp_path: Path) -> None:
    # a shell's background job ignores it, which would be no different from what Lightning leaves
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run(small_training(animals), tmp_path, Raises(KeyboardInterrupt()))
    assert signal.signal(signal.SIGINT, outer) is signal.default_int_handler
    assert checkpoint(tmp_path)["epoch"] == 0


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
def test_the_end_of_another_process_is_said_in_words(
    message: str, animals: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"Another process of the run ended.*--resume"):
        run(small_training(animals), tmp_path, Raises(RuntimeError(message)))


def test_any_other_error_is_left_alone(animals: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of my own") as caught:
        run(small_training(animals), tmp_path, Raises(RuntimeError("of my own")))
    assert not isinstance(caught.value, TrainingError)


def test_lightning_is_silent(
    animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(small_training(animals), tmp_path)
    assert capfd.readouterr() == ("", "")
