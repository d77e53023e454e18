"""What the loss of another process looks like from here, and what is said of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.signals import StopRequest
from finetune.errors import TrainingError

_PEER_LOSS_PATTERN = re.compile(
    r"gloo/transport|connection (was )?(closed|reset)|clients joined|wait timeout after"
    r"|timed out waiting|pair closure|ncclRemoteError|ncclSystemError|remote process exited"
    r"|NCCL communicator was aborted|collective operation timeout",
    re.IGNORECASE,
)
_PEER_LOSS_ERRORS = (dist.DistStoreError, dist.DistNetworkError)


class PeerFailedError(TrainingError):
    """Another process failed, and has said why.

    Args:
        from_rank: Which.
        message: What it said.
        exit_code: What it exits with, and this one too.
    """

    def __init__(self, rank: int, message: str, *, exit_code: int) -> None:
        super().__init__(f"Rank {rank} failed: {message}")
        self.is_from_peer = True
        self.exit_code = exit_code  # type: ignore[misc]


class PeerLostError(TrainingError):
    """Another process is gone, and has not said why."""


def explain_peer_loss(error: BaseException) -> TrainingError | None:
    """Return the end of another process behind the error of a collective, or None."""
    if isinstance(error, _PEER_LOSS_ERRORS) or (
        isinstance(error, RuntimeError) and _PEER_LOSS_PATTERN.search(str(error))
    ):
        return PeerLostError(
            "Another process of the run ended before its time, or the network between machines is "
            "cut; its own message says why, and none means that it was killed, as for want of "
            "memory. Go on with --resume."
        )
    return None


def explain_missing_heartbeat(
    rank: int, launch: LaunchInfo, timeout: timedelta, *, has_started: bool
) -> TrainingError:
    """Return what it means that a rank gives no sign of life, or was never heard of."""
    seconds = timeout.total_seconds()
    if has_started:
        return TrainingError(
            f"Rank {rank} ended, or gives no sign of life for {seconds:.0f} s. Its own message "
            f"says why; none means that it was killed, or the network cut."
        )
    return TrainingError(
        f"Rank {rank} of {launch.world_size} did not start within {seconds:.0f} s. Start all "
        f"processes together; a slow machine needs more trainer.collective_timeout_seconds."
    )


@contextmanager
def translate_peer_errors() -> Iterator[None]:
    """Say in words that another process is gone; a stop that was asked for comes first."""
    try:
        yield
    except RuntimeError as error:
        explained = explain_peer_loss(error)
        if explained is None:
            raise
        if signals.get_pending_signal():
            raise StopRequest(signals.get_pending_signal()) from error
        raise explained from error
