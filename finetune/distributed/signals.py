"""Stop signals: recorded where interruption is unsafe, raised as ``StopRequest`` where it is safe.

Schedulers send SIGTERM or SIGUSR1, Ctrl-C sends SIGINT, a closing terminal sends SIGHUP.
``install_handlers`` is called before the heavy imports. Until a command starts to work, a signal
ends the process at once, with the exit code of a stopped command: an exception in the middle of an
import may be caught there, or be printed as an error of the imported package.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""In ascending order: the largest of several is the most urgent."""

REQUEUE_FILE_VARIABLE = "FINETUNE_REQUEUE_FILE"
"""Environment variable with the file that a preempted run writes to request its requeueing."""


class StopRequest(KeyboardInterrupt):
    """A stop signal; a ``KeyboardInterrupt``, so that libraries do not handle it as a failure.

    Args:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(self.signum.name)


_CO_OPTIMIZED = 1
"""``inspect.CO_OPTIMIZED``, which functions have and bodies of modules and classes have not."""

_pending_signal: signal.Signals | None = None
_is_deferred = False
_terminal_fds: list[int] = []
_report_early_stop: Callable[[int], int] | None = None


def install_handlers(report_early_stop: Callable[[int], int]) -> None:
    """Handle stop signals from now on; after ``allow_interrupts`` they are recorded only.

    Args:
        report_early_stop: Function that reports the signal that ends the process before its command
            works, and returns the exit code. It is called in the middle of imports and must not
            import anything itself.
    """
    global _report_early_stop
    _report_early_stop = report_early_stop
    _register_handlers()
    # a batch script may block signals until the handlers are installed
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def install_interrupt_handler(report_early_stop: Callable[[int], int]) -> None:
    """Handle Ctrl-C alone, for a command that cannot be resumed.

    Args:
        report_early_stop: As for ``install_handlers``.
    """
    global _report_early_stop
    _report_early_stop = report_early_stop
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle_signal)


def get_name(signum: int) -> str:
    """Return the name of a stop signal, such as "SIGTERM"."""
    return signal.Signals(signum).name


def get_pending_signal() -> int:
    """Return the number of the recorded stop signal, or 0."""
    return 0 if _pending_signal is None else int(_pending_signal)


@contextmanager
def allow_interrupts() -> Iterator[None]:
    """Raise ``StopRequest`` in the block on a stop signal, or on entry if one is already recorded.

    Outside of the main thread, where Python cannot handle signals, this does nothing.
    """
    global _is_deferred, _pending_signal, _report_early_stop
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    was_deferred, report_early_stop = _is_deferred, _report_early_stop
    if report_early_stop is not None and previous_handlers[signal.SIGTERM] == _handle_signal:
        # the work of a resumable command is done when the block ends
        was_deferred, report_early_stop = True, None
    _is_deferred, _report_early_stop = False, None
    _register_handlers()
    try:
        _raise_pending_signal()
        yield
    finally:
        _is_deferred, _pending_signal = was_deferred, None
        _report_early_stop = report_early_stop
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)


@contextmanager
def defer() -> Iterator[None]:
    """Record signals in the block, which polls ``get_pending_signal`` where it can stop safely.

    A second Ctrl-C raises ``StopRequest`` nevertheless.
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
    """Block stop signals, permanently, in the processes that this thread starts in the block."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def ignore() -> None:
    """Ignore stop signals from now on."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _register_handlers() -> None:
    _terminal_fds[:] = [fd for fd in (1, 2) if os.isatty(fd)]
    for signum in STOP_SIGNALS:
        # shells start background jobs with SIGINT ignored, nohup starts its command with SIGHUP
        # ignored: keep these. Other signals are ignored by batch scripts only until this process
        # installs its handlers.
        keeps_ignored = signum in (signal.SIGINT, signal.SIGHUP)
        if not keeps_ignored or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _handle_signal)


def _handle_signal(signum: int, frame: FrameType | None) -> None:
    global _pending_signal
    if _report_early_stop is not None and not _is_working(frame):
        os._exit(_report_early_stop(signum))
    is_first = _pending_signal is None
    _pending_signal = max(_pending_signal or signal.SIGHUP, signal.Signals(signum))
    if signum == signal.SIGHUP:
        _redirect_terminals()
    # further signals must not interrupt an orderly shutdown, except for a further Ctrl-C
    if (is_first and not _is_deferred) or (not is_first and signum == signal.SIGINT):
        raise StopRequest(signum)
    if signum == signal.SIGINT and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        # buffered streams are not reentrant: write to the file descriptor
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop immediately\n")


def _is_working(frame: FrameType | None) -> bool:
    """Return whether a function of ``finetune.commands`` runs, and no module is being imported."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "importlib._bootstrap":
            return False
        if module.startswith("finetune.commands.") and frame.f_code.co_flags & _CO_OPTIMIZED:
            return True
        frame = frame.f_back
    return False


def _redirect_terminals() -> None:
    """Redirect streams of the closed terminal to /dev/null, since writing to it would raise."""
    null_fd = os.open(os.devnull, os.O_WRONLY)
    for terminal_fd in _terminal_fds:
        os.dup2(null_fd, terminal_fd)
    os.close(null_fd)


def _raise_pending_signal() -> None:
    if _pending_signal is not None:
        raise StopRequest(_pending_signal)
