"""Process of a server: its socket, and its end by a signal."""

import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from finetune.errors import ConfigError
from finetune.server.connections.http_protocol import create_protocol
from finetune.server.intake.limits import ServerLimits

_BACKLOG = 256
_KEEP_ALIVE_SECONDS = 5
_MAX_CONNECTIONS = 1000


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, and does not listen yet.

    Args:
        host: Host name or address.
        port: Port; 0 for a free one.

    Raises:
        ConfigError: The address is in use, or cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: unknown host ({error}).") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _explain_bind_error(error, host, port) from error
    return opened


def _explain_bind_error(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} of {host} is in use, maybe by another finetune serve. Choose another "
            f"with --port, or a free one with --port 0."
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"--port {port}: not permitted. Choose one from 1024 on.")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host} is no address of this machine.")
    return ConfigError(f"Cannot listen on port {port} of {host}: {error.strerror}.")


def format_url(bound: socket.socket, host: str) -> str:
    """Return the address of a bound socket for browsers of this machine."""
    port = bound.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


class _Server(uvicorn.Server):
    """Server that ends by the first signal when its requests are answered, by a second at once."""

    stop_signal: int | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals within the block, without raising them again."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once."""
        del frame
        self.force_exit = self.should_exit
        self.should_exit = True
        self.stop_signal = self.stop_signal or sig


def run_server(
    app: ASGIApp, bound: socket.socket, *, limits: ServerLimits, on_ready: Callable[[], None]
) -> int | None:
    """Serve an application until a signal, and return its number.

    Args:
        app: Application.
        bound: Socket of ``open_socket``.
        limits: Limits of the server.
        on_ready: Callback when clients can connect.

    Raises:
        ConfigError: Another process has begun to listen on the address.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    protocol = create_protocol(
        header_seconds=limits.header_seconds,
        write_seconds=limits.timeout_seconds,
        max_connections=min(_MAX_CONNECTIONS, files // 2),
    )
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level=logging.CRITICAL + 1,  # what clients do wrong is counted, and our errors reported
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(2 * limits.timeout_seconds)),
    )
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        raise _explain_bind_error(error, host, port) from error
    on_ready()
    server = _Server(config)
    server.run(sockets=[bound])
    return server.stop_signal
