"""What asks a process to stop: noted while it may not be interrupted, acted on where it may.

A scheduler says SIGTERM or SIGUSR1, a person presses Ctrl-C, a terminal that is closed says SIGHUP.
``install_handlers`` is called before anything heavy is imported, since a signal that nobody handles ends the
process there and then.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""In ascending number, so that the largest of several is the most urgent."""

REQUEUE_FILE_VARIABLE = "FINETUNE_REQUEUE_FILE"
"""Names the file that a preempted run writes for a batch script that puts it into the queue."""


class StopRequest(KeyboardInterrupt):
    """Ends what a signal interrupts; kin to Ctrl-C, so that no library takes it for a failure.

    Args:
        signum: What came.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(self.signum.name)


_pending_signal: signal.Signals | None = None
_is_deferred = False
_terminal_fds: list[int] = []


def install_handlers() -> None:
    """Note from now on what asks this process to stop, and go on."""
    global _is_deferred
    _register_handlers()
    _is_deferred = True
    # a batch script may hold back what came before somebody listened
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def get_pending_signal() -> int:
    """Return the number of the signal that has asked this process to stop, or 0."""
    return 0 if _pending_signal is None else int(_pending_signal)


@contextmanager
def allow_interrupts() -> Iterator[None]:
    """Raise ``StopRequest`` in the block when a signal comes, or has come before.

    In another thread than the main one signals cannot be handled; there nothing changes.
    """
    global _is_deferred, _pending_signal
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    was_deferred = _is_deferred
    _is_deferred = False
    _register_handlers()
    try:
        _raise_pending_signal()
        yield
    finally:
        _is_deferred, _pending_signal = was_deferred, None
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def defer() -> Iterator[None]:
    """Note signals in the block, which asks ``get_pending_signal`` where it can stop without loss.

    A second Ctrl-C raises all the same.
    """
    global _is_deferred
    was_deferred = _is_deferred
    _is_deferred = True
    try:
        yield
    finally:
        _is_deferred = was_deferred
    if not _is_deferred:
        _raise_pending_signal()


@contextmanager
def block() -> Iterator[None]:
    """Keep signals from the processes that this thread starts in the block, for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Leave it to the process that started this one to stop."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _register_handlers() -> None:
    _terminal_fds[:] = [stream for stream in (1, 2) if os.isatty(stream)]
    for signum in STOP_SIGNALS:
        # a job in the background of a shell is not meant by Ctrl-C, nor one that nohup started by
        # the end of the terminal; what else is ignored was so by a batch script, until somebody
        # here would listen
        mine = (signal.SIGINT, signal.SIGHUP)
        if signum not in mine or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _handle_signal)


def _handle_signal(signum: int, frame: FrameType | None) -> Any:
    global _pending_signal
    del frame
    first = _pending_signal is None
    _pending_signal = max(_pending_signal or signal.SIGHUP, signal.Signals(signum))
    if signum == signal.SIGHUP:
        _redirect_terminals()
    # a further one must not break off what ends the process in good order, but for Ctrl-C
    if (first and not _is_deferred) or (not first and signum == signal.SIGINT):
        raise StopRequest(signum)
    if signum == signal.SIGINT and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        # no library's stream may be written to from within a signal handler
        os.write(2, b"\nstopping after this step; Ctrl-C once more: at once\n")


def _redirect_terminals() -> None:
    """Write no more to what is closed, which would be an error in the middle of anything."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in _terminal_fds:
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _raise_pending_signal() -> None:
    if _pending_signal is not None:
        raise StopRequest(_pending_signal)
