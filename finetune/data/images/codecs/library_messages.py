"""Messages that image libraries write to the standard error stream, gathered by thread.

They name no file. Those of a file that cannot be read belong to its reason, all others are dropped.
"""

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, _imaging

_MAX_MESSAGE_BYTES = 512

_collectors = threading.local()


@contextmanager
def collect_messages() -> Iterator[list[str]]:
    """Gather what image libraries have to say in this thread, instead of showing it."""
    _install()
    outer = getattr(_collectors, "messages", None)
    messages: list[str] = []
    _collectors.messages = messages
    try:
        yield messages
    finally:
        _collectors.messages = outer


class _Gatherer(logging.Filter):
    """Filter of Pillow's loggers that gathers the records of threads that read images."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to pass the record on."""
        messages = getattr(_collectors, "messages", None)
        if messages is None:
            return True
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())
        return False


_gatherer = _Gatherer()
_lock = threading.Lock()
_handlers: list[Callable[..., Any]] = []
"""Handlers of libtiff, which must live as long as the process."""


def _install() -> None:
    """Install the filters and handlers of this process once."""
    if _handlers:
        return
    with _lock:
        if _handlers:
            return
        # Pillow warns of damage that it reads nevertheless, once per place and without the file
        warnings.filterwarnings("ignore", module=r"PIL\.")
        Image.init()  # imports the plugins, so that their loggers exist
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("PIL."):
                logging.getLogger(name).addFilter(_gatherer)
        _handlers.append(_redirect_libtiff())


def _redirect_libtiff() -> Callable[..., Any]:
    """Replace the handlers of libtiff, which print to the standard error stream of the process.

    Returns:
        The handler, to be kept alive.
    """
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    format_message = ctypes.CDLL(None).vsnprintf
    format_message.argtypes = (
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_void_p,
    )

    def gather(module: bytes | None, template: bytes | None, arguments: int | None) -> None:
        messages = getattr(_collectors, "messages", None)
        if messages is None or template is None:
            return
        buffer = ctypes.create_string_buffer(_MAX_MESSAGE_BYTES)
        format_message(buffer, _MAX_MESSAGE_BYTES, template, arguments)
        name = "" if module is None else f"{module.decode(errors='replace')}: "
        messages.append(name + buffer.value.decode(errors="replace"))

    def drop(module: bytes | None, template: bytes | None, arguments: int | None) -> None:
        """Drop a warning: the file is read nevertheless."""

    error_handler, warning_handler = handler_type(gather), handler_type(drop)
    try:
        # resolved among the libraries that Pillow's extension is linked with
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.argtypes = (handler_type,)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetWarningHandler.argtypes = (handler_type,)
        library.TIFFSetWarningHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(error_handler)
        library.TIFFSetWarningHandler(warning_handler)
    except (AttributeError, OSError):
        pass  # a Pillow without libtiff
    _handlers.append(warning_handler)
    return error_handler
