"""Access of clients: the token, the Host header, the origin, and headers that protect pages."""

import hmac
import ipaddress
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.errors import ConfigError
from finetune.server.intake.rejection import RejectionError
from finetune.server.server_metrics import ServerMetrics

TOKEN_VARIABLE = "FINETUNE_TOKEN"
MIN_TOKEN_LENGTH = 8

_OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""Paths that need no token: they tell nothing of the model."""

_PROTECTIVE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether a host name or address reaches this machine alone."""
    name = host.strip("[]").rstrip(".").lower()
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def check_access(host: str, token: str | None) -> None:
    """Check that a server which other machines reach has a token.

    Args:
        host: Host name or address that the server listens on.
        token: Token that clients have to send; None for none.

    Raises:
        ConfigError: There is none, or it is too short.
    """
    if token is None:
        if is_loopback(host):
            return
        raise ConfigError(
            f"--host {host}: other machines can reach this address, and need a token. Set "
            f"{TOKEN_VARIABLE} to at least {MIN_TOKEN_LENGTH} characters that nobody guesses, such "
            f"as those of: openssl rand -hex 16"
        )
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"The token (--token or {TOKEN_VARIABLE}) has to be at least {MIN_TOKEN_LENGTH} ASCII "
            f"letters, digits and signs without blanks, that nobody guesses, such as those of: "
            f"openssl rand -hex 16"
        )


class AccessControl:
    """ASGI application that checks requests before another one, and counts its responses.

    Without a token, only pages and programs of this machine are served: a web page elsewhere whose
    name resolves to this machine (DNS rebinding) sends its own Host header, and one that posts here
    its own Origin.

    Args:
        app: Application.
        token: Token that clients have to send; None for none.
        metrics: Receives responses and reasons.
        name_path: Function from a path to one of few names.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        metrics: ServerMetrics,
        name_path: Callable[[str], str],
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._metrics = metrics
        self._name_path = name_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        path = self._name_path(scope["path"])

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _PROTECTIVE_HEADERS.items():
                    headers.setdefault(name, value)
                self._metrics.responses.labels(path, message["status"]).inc()
                self._metrics.request_seconds.labels(path).observe(time.monotonic() - start)
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except RejectionError as error:
            self._metrics.rejected.labels(error.reason).inc()
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            response = JSONResponse(error.to_json(), error.status, headers=headers)
            await response(scope, receive, send_protected)
            return
        await self._app(scope, receive, send_protected)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        if self._token is not None:
            is_open = path in _OPEN_PATHS or path.startswith("/assets/")
            if not is_open and not self._has_token(headers):
                raise RejectionError(
                    401,
                    "no_token",
                    "The token is missing or wrong. Send it as the header Authorization: Bearer "
                    "TOKEN.",
                )
            return
        host = headers.get("host", "")
        if not is_loopback(_get_host_name(host)):
            raise RejectionError(
                421,
                "foreign_host",
                "The Host header names another machine. Without a token, the server answers to "
                "localhost alone.",
            )
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin not in (None, f"http://{host}"):
            raise RejectionError(403, "foreign_origin", "Another web page sent the request.")

    def _has_token(self, headers: Headers) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1", errors="replace")
        return hmac.compare_digest(sent, self._token) and scheme.lower() == "bearer"


def _get_host_name(host: str) -> str:
    """Return the name or address of a Host header; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
