"""Errors of failed and lost peers, and detection of a lost peer behind an error of the backend.

Before the process group exists, ``rendezvous`` detects lost peers by their heartbeats.
"""

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
    """Another process of the run failed and published its error.

    Args:
        rank: Rank of that process.
        message: First line of its error message.
        exit_code: Its exit code, which this process uses too.
    """

    def __init__(self, rank: int, message: str, *, exit_code: int) -> None:
        super().__init__(f"Rank {rank} failed: {message}")
        self.is_from_peer = True
        self.exit_code = exit_code  # type: ignore[misc]


class PeerLostError(TrainingError):
    """Another process of the run ended or is unreachable, and published no error."""


def explain_peer_loss(error: BaseException) -> TrainingError | None:
    """Return the readable error if the error of a collective means a lost peer, else None."""
    if isinstance(error, _PEER_LOSS_ERRORS) or (
        isinstance(error, RuntimeError) and _PEER_LOSS_PATTERN.search(str(error))
    ):
        return PeerLostError(
            "Another process of the run ended unexpectedly, or the network between nodes failed. "
            "See the message of that process; without one it was killed, for example because "
            "memory ran out. Resume with --resume."
        )
    return None


def explain_missing_heartbeat(
    rank: int, launch: LaunchInfo, timeout: timedelta, *, has_started: bool
) -> TrainingError:
    """Return the readable error for a rank without heartbeats, or one that never started."""
    seconds = timeout.total_seconds()
    if has_started:
        return TrainingError(
            f"Rank {rank} ended or has sent no heartbeat for {seconds:.0f} s. See its own message; "
            f"without one it was killed, or the network failed."
        )
    return TrainingError(
        f"Rank {rank} of {launch.world_size} did not start within {seconds:.0f} s. Start all "
        f"processes together; slow nodes need a larger trainer.collective_timeout_seconds."
    )


@contextmanager
def translate_peer_errors() -> Iterator[None]:
    """Replace backend errors in the block by ``PeerLostError`` where a peer is lost.

    Raises:
        StopRequest: Instead, if this process has recorded a stop signal.
        PeerLostError: A peer is lost.
    """
    try:
        yield
    except RuntimeError as error:
        peer_loss = explain_peer_loss(error)
        if peer_loss is None:
            raise
        if signum := signals.get_pending_signal():
            raise StopRequest(signum) from error
        raise peer_loss from error
