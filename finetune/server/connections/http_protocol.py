"""Connections that are cut off when their client is too slow."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """HTTP connection with a limit of the time without a complete request, and of unread responses.

    uvicorn limits the time between requests alone: headers that arrive byte by byte, and a body
    that is sent on after its rejection, would hold a connection forever.
    """

    header_seconds = 10.0
    """Time for the headers of a request, and for the rest of a rejected one."""

    write_seconds = 30.0
    """Time for a client to read what was sent to it."""

    max_connections = 1000
    """Connections above which a new one is closed."""

    _request_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._request_timer = self.loop.call_later(self.header_seconds, self._cut_off)

    def data_received(self, data: bytes) -> None:
        """Handle data, which do not extend the time for headers."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_request_timer()
        elif self._request_timer is None:
            self._request_timer = self.loop.call_later(self.header_seconds, self._cut_off)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_seconds, self._cut_off)

    def resume_writing(self) -> None:
        """Note that the client has read."""
        super().resume_writing()
        self._stop_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_request_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _cut_off(self) -> None:
        self.transport.abort()

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def create_protocol(
    *, header_seconds: float, write_seconds: float, max_connections: int
) -> type[TimedProtocol]:
    """Return the protocol with other limits, as a class that uvicorn creates objects of."""
    return type(
        "LimitedProtocol",
        (TimedProtocol,),
        {
            "header_seconds": header_seconds,
            "write_seconds": write_seconds,
            "max_connections": max_connections,
        },
    )
