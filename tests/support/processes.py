"""Processes forked from a server that has imported everything once; two as ranks of one group."""

import multiprocessing
import os
import pickle
import signal
import socket
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
from finetune.distributed.rendezvous import Rendezvous, join_rendezvous
from finetune.distributed.signals import StopRequest
from finetune.distributed.store_client import open_store
from finetune.errors import FinetuneError
from finetune.training.callbacks.checkpoint import read_checkpoint
from finetune.training.callbacks.freeze_layers import UnfreezeScheduler
from finetune.training.callbacks.mid_epoch_resume import ResumeState
from finetune.training.strategy import BufferAwareDDPStrategy
from finetune.training.trainer import create_trainer, fit
from tests.support.networks import randomise
from tests.support.runs import small_training

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


def on_two_ranks(target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``target(rank, *arguments)`` returns on ranks 0 and 1 of this machine."""
    return on_ranks(2, target, *arguments)


def on_ranks(count: int, target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``target(rank, *arguments)`` returns on each rank of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(count)]
    children = [
        _CONTEXT.Process(target=_heard, args=(_run, target, rank, count, port, pipe[1], arguments))
        for rank, pipe in enumerate(pipes)
    ]
    for child in children:
        child.start()
    try:
        results = []
        for receiver, _ in pipes:
            assert receiver.poll(_SECONDS), "a rank does not answer"
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


def context() -> ForkServerContext:
    """Return what makes events and barriers for ``started`` processes."""
    return _CONTEXT


def joined_by(pid: int) -> list[int]:
    """Return the further processes of a run, in the order of their ranks, which one started."""
    with suppress(OSError):  # one has ended meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        return [child for child, line in lines.items() if JOIN_COMMAND.encode() in line]
    return []


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run ``target(*arguments)`` in a process of its own while the block lasts; then it is killed.

    The target must be a function of a module; the process is what ``multiprocessing`` calls one.
    """
    child = _CONTEXT.Process(target=_heard, args=(target, *arguments))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
        child.close()


def _heard(target: Callable[..., None], *arguments: Any) -> None:
    """Run ``target`` where signals arrive.

    The server that the processes come from is one for all of Python: if reading processes needed it
    first, ``signals.blocked`` has kept signals from whatever is forked from it.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
    target(*arguments)


def _run(
    target: Any, rank: int, count: int, port: int, answer: Any, arguments: tuple[Any, ...]
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
    # not send(): it would share tensors in memory, which ends with this process
    answer.send_bytes(pickle.dumps(target(rank, *arguments)))


@contextmanager
def joined() -> Iterator[Rendezvous | None]:
    """Bring the processes of ``on_ranks`` together, as a launcher's come; any other is alone."""
    launch = detect_launch()
    if launch is None:
        yield None
        return
    with join_rendezvous(launch, timeout=_MINUTE) as met, met.open_process_group(backend="gloo"):
        yield met


@contextmanager
def grouped() -> Iterator[LaunchInfo | None]:
    """Bring the processes together; yield which of them this is."""
    with joined() as met:
        yield None if met is None else met.launch


def gathered(rank: int, columns: list[list[Tensor]]) -> list[Tensor]:
    """Return what ``gather_rows`` gives for a rank's columns."""
    with grouped():
        return gather_rows(*columns[rank])


class WithoutRebuild(UnfreezeScheduler):
    """Layers thaw, and the DDP wrapper stays as it was; nobody looks before the end."""

    def _update_depth(self, trainer: Any, pl_module: Any) -> None:
        pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))


class WithoutRebuildOrCheck(WithoutRebuild):
    """What Lightning's own callbacks do."""

    def on_save_checkpoint(self, *args: Any) -> None:
        """Look at nothing."""


class RebuildForgotten(UnfreezeScheduler):
    """Believes that the wrapper already reduces what trains."""

    def _update_depth(self, trainer: Any, pl_module: Any) -> None:
        pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))
        self._ddp_parameter_ids = {id(p) for p in pl_module.parameters() if p.requires_grad}
        super()._update_depth(trainer, pl_module)


def trained(
    rank: int,
    data: Path,
    folder: Path,
    settings: dict[str, Any],
    callback: type[UnfreezeScheduler] = UnfreezeScheduler,
) -> tuple[dict[str, Tensor], dict[str, float]] | str:
    """Return a rank's final weights and metrics, or the message of the error that ended it."""
    training = small_training(data, **settings)
    try:
        with grouped() as launch:
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
    return state, {name: float(value) for name, value in trainer.callback_metrics.items()}


def validated(rank: int, data: Path, num_val: int, count: int) -> dict[str, float]:
    """Return a rank's metrics of the first images of validation, by weights from a seed."""
    training = small_training(
        data, trainer__devices=count, trainer__batch_size=4, model__batch_norm="frozen"
    )
    randomise(training.module.classifier.network)
    val = training.datamodule.val_dataset
    paths = [Path(val.source.get_name(row)) for row in range(0, len(val), len(val) // num_val)][
        :num_val
    ]
    labels = val.labels[:: len(val) // num_val][:num_val].tolist()
    training.datamodule.val_dataset = ImageDataset(
        FileSource(paths, max_pixels=10**6), labels, val.transform
    )
    with grouped() as launch, TemporaryDirectory() as folder:
        options = build_trainer_options(training.config)
        trainer = create_trainer(Path(folder), options, callbacks=[], loggers=[], launch=launch)
        (metrics,) = trainer.validate(training.module, training.datamodule, verbose=False)
    return dict(metrics)


class CountBytes(Callback):
    """Counts what DDP sends in each step, gradients and buffers, epoch by epoch."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self._hooked: Any = None
        self._in_step = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Count at the wrapper of this epoch, which may be another than before."""
        self.sent.append([])
        if trainer.strategy.model is not self._hooked:
            self._hooked = trainer.strategy.model
            self._hooked.register_comm_hook(None, self._reduce)

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin with the next step."""
        self.sent[-1].append(0)
        self._in_step = True

    def on_train_batch_end(self, *args: Any) -> None:
        """Leave out what a new wrapper sends, once, to make all alike."""
        self._in_step = False

    @contextmanager
    def broadcasts(self) -> Iterator[None]:
        """Count the buffers that rank 0 sends, too."""
        send = dist._broadcast_coalesced  # type: ignore[attr-defined]

        def counting(group: Any, tensors: list[Tensor], *more: Any) -> None:
            if self._in_step:
                self.sent[-1][-1] += sum(tensor.nbytes for tensor in tensors)
            send(group, tensors, *more)

        with mock.patch.object(dist, "_broadcast_coalesced", counting):
            yield

    def _reduce(self, state: object, bucket: GradBucket) -> Future[Tensor]:
        self.sent[-1][-1] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def counted(rank: int, data: Path, folder: Path, settings: dict[str, Any]) -> list[list[int]]:
    """Return the bytes that a rank sends in each step, epoch by epoch."""
    training = small_training(data, **settings)
    count = CountBytes()
    with grouped() as launch, count.broadcasts():
        trainer = create_trainer(
            folder,
            build_trainer_options(training.config),
            callbacks=[UnfreezeScheduler(), count],
            loggers=[],
            launch=launch,
        )
        fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return count.sent


class StopInValidation(Callback):
    """Asks this process to stop when the first epoch is measured."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Send the signal that a scheduler would."""
        if trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)


FINISHED_AFTER_A_STOP = ("SIGTERM", [0, 6], [2, 0])
"""What ended the first part, and the epochs and steps behind either part."""


def stopped_in_validation(
    rank: int, data: Path, folder: Path, backend: str, accelerator: str
) -> tuple[str, list[int], list[int]]:
    """Train two epochs, of which the first is broken off after its steps, by DDP on any ranks."""
    size, port = int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"])

    def part(number: int, *callbacks: Callback) -> tuple[str, list[int]]:
        last = folder / "checkpoints" / "last.ckpt"
        training = small_training(
            data,
            trainer__devices=size,
            trainer__accelerator=accelerator,
            trainer__epochs=2,
            trainer__batch_size=4,
        )
        launch = LaunchInfo(rank, size, rank, size, 0, "127.0.0.1", port + number, "environment")
        met = Rendezvous(launch, lambda: open_store(launch, _MINUTE), timeout=_MINUTE)
        ended_by = ""
        try:
            with signals.allow_interrupts(), met.open_process_group(backend=backend):
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
                    checkpoint_path=last if number else None,
                )
        except StopRequest as stop:
            ended_by = str(stop)
        finally:
            met.close()
        position = ResumeState.from_checkpoint(read_checkpoint(last))
        return ended_by, [position.completed_epochs, position.steps_in_epoch]

    with mock.patch("finetune.training.trainer.choose_strategy", _as_replicas):
        ended_by, first = part(0, StopInValidation())
        _, second = part(1)
    return ended_by, first, second


def _as_replicas(
    name: str, *, timeout: timedelta, live_buffers: bool, **more: Any
) -> BufferAwareDDPStrategy:
    """Return DDP for one process, too."""
    backend = "nccl" if more["accelerator"] == "cuda" else "gloo"
    return BufferAwareDDPStrategy(
        broadcast_buffers=live_buffers, timeout=timeout, process_group_backend=backend
    )
