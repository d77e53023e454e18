"""Standard streams that outlive their reader: a closed pipe or a full disk never ends a command.

``protect`` replaces ``sys.stdout`` and ``sys.stderr`` of a process. When a write fails, the stream
is redirected, and further writes succeed: to the log that ``set_log`` names, else to the null
device. ``get_failure`` tells afterwards why a stream was redirected.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.system.files import describe_disk_error

_STREAMS = {1: ("stdout", "standard output"), 2: ("stderr", "standard error")}
"""Descriptor to the name in ``sys`` and the name in messages."""

_failures: dict[int, OSError] = {}
"""Descriptor to the error with which it failed."""

_log_path: Path | None = None


def protect() -> None:
    """Replace the standard streams of this process, and open those that its parent has closed.

    A file that is opened later would otherwise get the number of a closed stream, and receive what
    is printed.
    """
    opened = _open_closed_descriptors()
    for fd, (name, _) in _STREAMS.items():
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent
            if fd in opened:
                _failures[fd] = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            setattr(sys, name, _build_stream(fd if fd in opened else _open_null()))
        elif isinstance(stream, io.TextIOWrapper) and _get_descriptor(stream) == fd:
            setattr(sys, name, _build_stream(fd, like=stream))


def set_log(path: Path) -> None:
    """Print to a log file what can no longer be printed; it is created only when it is needed."""
    global _log_path
    _log_path = path
    for fd in _failures:
        _redirect(fd)
        _announce(fd)


def has_log() -> bool:
    """Return whether a log takes the place of a stream that fails."""
    return _log_path is not None


def get_failure(fd: int) -> OSError | None:
    """Return the error with which a standard stream failed, after writing what it has buffered."""
    with suppress(OSError, ValueError, AttributeError):
        getattr(sys, _STREAMS[fd][0]).flush()
    return _failures.get(fd)


def is_closed_pipe(error: OSError) -> bool:
    """Return whether a stream failed because nobody reads it any more, as after ``| head``."""
    return isinstance(error, BrokenPipeError)


class _RedirectingFile(io.FileIO):
    """File of a standard stream that is redirected when a write fails."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "wb", closefd=False)

    def write(self, data: Any, /) -> int:
        """Write as much of the data as possible, and return the number of bytes."""
        fd = self.fileno()
        try:
            return super().write(data)
        except OSError as error:
            is_new = fd not in _failures
            _failures[fd] = error
            _redirect(fd)
            if is_new and _log_path is not None:
                _announce(fd)
        try:
            return super().write(data)
        except OSError:  # the log is on a full disk, too
            _redirect(fd, to_log=False)
            return super().write(data)


def _build_stream(fd: int, like: io.TextIOWrapper | None = None) -> io.TextIOWrapper:
    """Return a text stream that redirects a descriptor, with the settings of another stream."""
    raw: Any = _RedirectingFile(fd)
    if like is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    with suppress(OSError):
        like.flush()
    is_unbuffered = isinstance(like.buffer, io.RawIOBase)  # python -u
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        like.encoding,
        like.errors,
        line_buffering=like.line_buffering,
        write_through=is_unbuffered,
    )


def _redirect(fd: int, *, to_log: bool = True) -> None:
    """Point a descriptor at the log if there is one that can be written, else at nothing."""
    target = None
    if to_log and _log_path is not None:
        with suppress(OSError):
            target = os.open(_log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    if target is None:
        target = _open_null()
    os.dup2(target, fd)
    os.close(target)


def _announce(fd: int) -> None:
    """Say in the log where a run prints from now on, and on standard error if that is left."""
    error = _failures[fd]
    reason = "it was closed" if is_closed_pipe(error) else describe_disk_error(error)
    text = (
        f"Cannot write to {_STREAMS[fd][1]} ({reason}). The run continues; what it prints is in "
        f"{_log_path}."
    )
    time = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):
        os.write(fd, f"{time} {text}\n".encode(errors="backslashreplace"))
    if 2 not in _failures:
        with suppress(OSError):
            os.write(2, f"warning: {text}\n".encode(errors="backslashreplace"))


def _open_closed_descriptors() -> set[int]:
    """Open the standard descriptors that are closed at the null device, and return them."""
    opened = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            null = _open_null()
            os.dup2(null, fd)
            if null != fd:
                os.close(null)
            os.set_inheritable(fd, True)
            opened.add(fd)
    return opened


def _open_null() -> int:
    return os.open(os.devnull, os.O_RDWR)


def _get_descriptor(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
