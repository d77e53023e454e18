"""Processes forked from a server with all imports done, alone or as the ranks of one group."""

import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from pytorch_lightning import Callback
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future

from finetune.builders import build_trainer_options
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.distributed import signals
from finetune.distributed.collectives import gather_rows
from finetune.distributed.launch import JOIN_COMMAND, LaunchInfo, detect_launch
from finetune.distributed.rendezvous import Rendezvous
from finetune.distributed.signals import StopRequest
from finetune.errors import FinetuneError
from finetune.training.callbacks.mid_epoch_resume import ResumeState
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.checkpoint_io import read_checkpoint
from finetune.training.strategy import BufferAwareDDPStrategy
from finetune.training.trainer import create_trainer, fit
from finetune.types import ReadOptions
from tests.support.networks import randomise
from tests.support.runs import create_small_training

_SECONDS = 120
_MINUTE = timedelta(seconds=60)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        __name__,
        "albumentations",
        "finetune.commands.fit.fit",
        "finetune.cli.main",
        "sklearn",
        "wandb",
    ]
)


def run_on_ranks(count: int, target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``target(rank, *arguments)`` on each rank of one node and return the results."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(count)]
    children = [
        _CONTEXT.Process(
            target=_run_interruptible, args=(_run, target, rank, count, port, pipe[1], arguments)
        )
        for rank, pipe in enumerate(pipes)
    ]
    for child in children:
        child.start()
    try:
        results = []
        for receiver, _ in pipes:
            assert receiver.poll(_SECONDS), "a rank does not respond"
            results.append(pickle.loads(receiver.recv_bytes()))
    finally:
        for child in children:
            child.join(10)
            child.kill()
            child.join()
        for receiver, sender in pipes:
            receiver.close()
            sender.close()
    return results


def get_fork_context() -> ForkServerContext:
    """Return the context that creates events, barriers and pipes for ``start_process``."""
    return _CONTEXT


def find_worker_pids(pid: int) -> list[int]:
    """Return the pids of the workers that the local launcher of a process started, by rank."""
    with suppress(OSError):  # a process has ended meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        return [child for child, command in commands.items() if JOIN_COMMAND.encode() in command]
    return []


def wait_for_worker_pids(pid: int, count: int) -> list[int]:
    """Return the pids of a process's workers once all show their command in ``/proc``.

    The command of a process is empty for a moment after its start.
    """
    deadline = time.monotonic() + _SECONDS
    while len(pids := find_worker_pids(pid)) != count:
        assert time.monotonic() < deadline, f"{len(pids)} of {count} workers"
        time.sleep(0.01)
    return pids


@contextmanager
def start_process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run ``target(*arguments)`` in a process of its own, and kill it at the end of the block.

    The target must be a function of a module. Yields a ``multiprocessing`` process.
    """
    child = _CONTEXT.Process(target=_run_interruptible, args=(target, *arguments))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
        child.close()


def _run_interruptible(target: Callable[..., None], *arguments: Any) -> None:
    """Run ``target`` with stop signals unblocked.

    Python has a single fork server for all contexts: if data-loader workers needed it first,
    ``signals.block`` has blocked the signals of all processes that are forked from it.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
    target(*arguments)


def _run(
    target: Any, rank: int, count: int, port: int, sender: Any, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
    )
    torch.set_num_threads(1)
    # send() would put tensors into shared memory, which ends with this process
    sender.send_bytes(pickle.dumps(target(rank, *arguments)))


@contextmanager
def open_group() -> Iterator[Rendezvous | None]:
    """Open the process group of ``run_on_ranks``; yield None in any other process."""
    launch = detect_launch()
    if launch is None:
        yield None
        return
    with (
        Rendezvous(launch, timeout=_MINUTE) as rendezvous,
        rendezvous.open_process_group(backend="gloo"),
    ):
        yield rendezvous


@contextmanager
def open_group_of_launch() -> Iterator[LaunchInfo | None]:
    """Open the process group of ``run_on_ranks`` and yield the launch of this rank."""
    with open_group() as rendezvous:
        yield None if rendezvous is None else rendezvous.launch


def gather_columns(rank: int, columns: list[list[Tensor]]) -> list[Tensor]:
    """Return the result of ``gather_rows`` for the columns of a rank."""
    with open_group():
        return gather_rows(*columns[rank])


class WithoutDdpRebuild(UnfreezeScheduler):
    """Scheduler that unfreezes layers without rebuilding the DDP wrapper."""

    def _update_depth(self, trainer: Any, pl_module: Any) -> None:
        pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))


class WithoutDdpRebuildOrCheck(WithoutDdpRebuild):
    """Scheduler that neither rebuilds nor checks, like Lightning's own callbacks."""

    def on_save_checkpoint(self, *args: Any) -> None:
        """Skip the check."""


class StaleDdpRebuild(UnfreezeScheduler):
    """Scheduler that wrongly takes the wrapper as up to date."""

    def _update_depth(self, trainer: Any, pl_module: Any) -> None:
        pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))
        self._ddp_parameter_ids = {id(p) for p in pl_module.parameters() if p.requires_grad}
        super()._update_depth(trainer, pl_module)


def train_on_rank(
    rank: int,
    data: Path,
    folder: Path,
    settings: dict[str, Any],
    callback: type[UnfreezeScheduler] = UnfreezeScheduler,
) -> tuple[dict[str, Tensor], dict[str, float]] | str:
    """Return the final weights and metrics of a rank, or its error as text."""
    training = create_small_training(data, **settings)
    try:
        with open_group_of_launch() as launch:
            trainer = create_trainer(
                folder,
                build_trainer_options(training.config),
                callbacks=[callback()],
                loggers=[],
                launch=launch,
            )
            fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    except FinetuneError as error:
        return f"{type(error).__name__}: {error}"
    state = {name: tensor.clone() for name, tensor in training.module.state_dict().items()}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    del metrics["images_per_second"]  # measured by each rank
    return state, metrics


def validate_on_rank(rank: int, data: Path, num_val: int, count: int) -> dict[str, float]:
    """Return a rank's metrics on some validation images, with weights drawn from a seed."""
    training = create_small_training(
        data, trainer__devices=count, trainer__batch_size=4, model__batch_norm="frozen"
    )
    randomise(training.module.classifier.network)
    val = training.datamodule.val_dataset
    paths = [Path(val.source.get_name(row)) for row in range(0, len(val), len(val) // num_val)][
        :num_val
    ]
    labels = val.labels[:: len(val) // num_val][:num_val].tolist()
    training.datamodule.val_dataset = ImageDataset(
        FileSource(paths, options=ReadOptions(max_pixels=10**6)), labels, val.transform
    )
    with open_group_of_launch() as launch, TemporaryDirectory() as folder:
        options = build_trainer_options(training.config)
        trainer = create_trainer(Path(folder), options, callbacks=[], loggers=[], launch=launch)
        (metrics,) = trainer.validate(training.module, training.datamodule, verbose=False)
    return dict(metrics)


class CountBytes(Callback):
    """Callback that counts the bytes of gradients and buffers that DDP sends in each step."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self._hooked: Any = None
        self._in_step = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Register the hook with the wrapper of this epoch, which may be a new one."""
        self.sent.append([])
        if trainer.strategy.model is not self._hooked:
            self._hooked = trainer.strategy.model
            self._hooked.register_comm_hook(None, self._reduce)

    def on_train_batch_start(self, *args: Any) -> None:
        """Start to count a step."""
        self.sent[-1].append(0)
        self._in_step = True

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop counting: a new wrapper broadcasts its parameters once, outside of the steps."""
        self._in_step = False

    @contextmanager
    def broadcasts(self) -> Iterator[None]:
        """Count also the buffers that rank 0 broadcasts."""
        broadcast = dist._broadcast_coalesced  # type: ignore[attr-defined]

        def count_and_broadcast(group: Any, tensors: list[Tensor], *more: Any) -> None:
            if self._in_step:
                self.sent[-1][-1] += sum(tensor.nbytes for tensor in tensors)
            broadcast(group, tensors, *more)

        with mock.patch.object(dist, "_broadcast_coalesced", count_and_broadcast):
            yield

    def _reduce(self, state: object, bucket: GradBucket) -> Future[Tensor]:
        self.sent[-1][-1] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def count_bytes_on_rank(
    rank: int, data: Path, folder: Path, settings: dict[str, Any]
) -> list[list[int]]:
    """Return the bytes that a rank sends, by epoch and step."""
    training = create_small_training(data, **settings)
    counter = CountBytes()
    with open_group_of_launch() as launch, counter.broadcasts():
        trainer = create_trainer(
            folder,
            build_trainer_options(training.config),
            callbacks=[UnfreezeScheduler(), counter],
            loggers=[],
            launch=launch,
        )
        fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return counter.sent


class StopInValidation(Callback):
    """Callback that sends a stop signal to this process in the validation of the first epoch."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Send SIGTERM, as a batch scheduler does."""
        if trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)


STOPPED_AND_RESUMED = ("SIGTERM", [0, 6], [2, 0])
"""Signal that ended the first part; completed epochs and steps in the epoch after either part."""


def train_with_stop_in_validation(
    rank: int, data: Path, folder: Path, backend: str, accelerator: str
) -> tuple[str, list[int], list[int]]:
    """Train two epochs by DDP on any number of ranks, stopped in the validation of the first one.

    Returns:
        The result to compare with ``STOPPED_AND_RESUMED``.
    """
    size, port = int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"])
    checkpoint_path = folder / "checkpoints" / "last.ckpt"

    def train_part(number: int, *callbacks: Callback) -> tuple[str, list[int]]:
        training = create_small_training(
            data,
            trainer__devices=size,
            trainer__accelerator=accelerator,
            trainer__epochs=2,
            trainer__batch_size=4,
        )
        launch = LaunchInfo(rank, size, rank, size, 0, "127.0.0.1", port + number, "environment")
        ended_by = ""
        try:
            with (
                signals.allow_interrupts(),
                Rendezvous(launch, timeout=_MINUTE) as rendezvous,
                rendezvous.open_process_group(backend=backend),
            ):
                trainer = create_trainer(
                    folder,
                    build_trainer_options(training.config),
                    callbacks=[UnfreezeScheduler(), *callbacks],
                    loggers=[],
                    launch=launch,
                )
                fit(
                    trainer,
                    training.module,
                    training.datamodule,
                    checkpoint_path=checkpoint_path if number else None,
                )
        except StopRequest as stop:
            ended_by = str(stop)
        state = ResumeState.from_checkpoint(read_checkpoint(checkpoint_path))
        return ended_by, [state.completed_epochs, state.steps_in_epoch]

    with mock.patch("finetune.training.trainer.choose_strategy", _choose_ddp):
        ended_by, first = train_part(0, StopInValidation())
        _, second = train_part(1)
    return ended_by, first, second


def _choose_ddp(
    name: str, *, timeout: timedelta, broadcast_buffers: bool, **more: Any
) -> BufferAwareDDPStrategy:
    """Return DDP, also for a single process."""
    backend = "nccl" if more["accelerator"] == "cuda" else "gloo"
    return BufferAwareDDPStrategy(
        broadcast_buffers=broadcast_buffers, timeout=timeout, process_group_backend=backend
    )
