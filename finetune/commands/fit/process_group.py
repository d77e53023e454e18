"""Processes of a run: their rendezvous, what rank 0 broadcasts to them, and their process group."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch

from finetune.builders import Training, build_training
from finetune.bundle.model_card import ModelCard
from finetune.commands.fit.launch_check import check_launch
from finetune.commands.stored_run import read_stored_manifest
from finetune.config.schema import Config, TrainerConfig
from finetune.distributed.launch import detect_launch
from finetune.distributed.local_launcher import launch_local_workers
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import RunFolderError
from finetune.system import run_folder
from finetune.system.hardware import get_process_device
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import read_resume_state
from finetune.types import Reporter


@contextmanager
def open_rendezvous(trainer: TrainerConfig, reporter: Reporter) -> Iterator[Rendezvous | None]:
    """Yield the rendezvous with the other processes of a launch; None for a single process.

    Args:
        trainer: Section of the config, as given.
        reporter: Receiver of progress, which checks the other processes from now on.

    Raises:
        ConfigError: The launcher started other processes than requested.
        TrainingError: The other processes cannot be reached.
    """
    launch = check_launch(trainer, detect_launch())
    if launch is None or launch.world_size == 1:
        yield None
        return
    timeout = timedelta(seconds=trainer.collective_timeout_seconds)
    with (
        Rendezvous(launch, timeout=timeout) as rendezvous,
        rendezvous.check_peers_on_advance(reporter),
    ):
        yield rendezvous


def broadcast_run(rendezvous: Rendezvous, run: RunFolder, training: Training) -> None:
    """Send the config and the model card to the other processes; DDP sends them the weights."""
    message = {
        "run_dir": str(run.path.resolve()),
        "config": training.config.model_dump(mode="json"),
        "card": training.module.card,
        "progress": _read_progress(run),
    }
    rendezvous.broadcast("run", message)


def receive_run(rendezvous: Rendezvous) -> tuple[RunFolder, Training] | None:
    """Return the run and the training that rank 0 broadcasts; None if the run is complete.

    Raises:
        RunFolderError: This node does not see the run folder as rank 0 does.
    """
    message = rendezvous.receive("run")
    if message is None:
        return None
    run = RunFolder(Path(message["run_dir"]))
    _wait_for_shared_storage(run, message["progress"])
    config = Config.model_validate(message["config"])
    training = build_training(
        config,
        read_stored_manifest(run, config),
        checkpoint_card=ModelCard.from_json(message["card"]),
        is_resumed=True,
    )
    return run, training


@contextmanager
def open_process_group(
    run: RunFolder, training: Training, rendezvous: Rendezvous | None
) -> Iterator[Rendezvous | None]:
    """Join all processes of the run into a group; yield their rendezvous, None for one process.

    Without a launcher, the other local processes are started here.
    """
    trainer = training.config.trainer
    num_workers = 0 if rendezvous is not None else trainer.devices - 1
    if rendezvous is None and num_workers == 0:
        yield None
        return
    timeout = timedelta(seconds=trainer.collective_timeout_seconds)
    peers: AbstractContextManager[Rendezvous] = (
        launch_local_workers(run.path, num_workers=num_workers, timeout=timeout)
        if rendezvous is None
        else nullcontext(rendezvous)
    )
    with peers as group:
        if rendezvous is None:
            broadcast_run(group, run, training)
        backend = "nccl" if trainer.accelerator == "cuda" else "gloo"
        with group.open_process_group(backend=backend):
            yield group


def _read_progress(run: RunFolder) -> list[int] | None:
    """Return the completed epochs and steps of a run, which all processes must see alike."""
    state = read_resume_state(run)
    return None if state is None else [state.completed_epochs, state.steps_in_epoch]


def _wait_for_shared_storage(
    run: RunFolder, progress: list[int] | None, *, timeout_seconds: float = 60.0
) -> None:
    """Wait until this node sees the run folder as rank 0 does; network storage may lag by seconds.

    Raises:
        RunFolderError: It does not within the timeout.
    """
    deadline = time.monotonic() + timeout_seconds
    while not run_folder.is_run(run.path) or _read_progress(run) != progress:
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"{run.path} on this node differs from what rank 0 sees on another node. The run "
                f"folder must be on storage that all nodes share. Choose another --output."
            )
        time.sleep(0.2)


def get_device(training: Training, rendezvous: Rendezvous | None) -> torch.device:
    """Return the device of this rank."""
    local_rank = 0 if rendezvous is None else rendezvous.launch.local_rank
    return get_process_device(training.config.trainer.accelerator, local_rank)
