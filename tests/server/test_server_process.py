"""Tests of a server in a process of its own: slow clients, signals, and a port in use."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune.errors import ConfigError
from finetune.server.connections.server_process import open_socket
from tests.server.conftest import create_photo
from tests.support.server_process import start_server

pytestmark = pytest.mark.runs

_PHOTO = create_photo()
_HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def served(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Return a server that waits a second for slow clients."""
    folder = tmp_path_factory.mktemp("process")
    with start_server(model_folder, folder, "--timeout", "1", "--max-bytes", "100000") as started:
        yield started


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _dribble(connection: socket.socket, first: bytes, part: bytes) -> float:
    """Send a part every 50 ms until the server ends the connection; return the seconds."""
    start = time.monotonic()
    connection.sendall(first)
    connection.settimeout(0.05)
    while time.monotonic() - start < 20:
        try:
            connection.sendall(part)
            if not connection.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "part"),
    [
        pytest.param(b"", b"", id="silent"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n", id="headers"),
        pytest.param(_HEAD % 50_000, b"x", id="body"),
        pytest.param(_HEAD % 10**9, b"x" * 100, id="rejected body"),
    ],
)
def test_slow_client_is_cut_off_and_blocks_nobody(
    served: tuple[subprocess.Popen[str], str], first: bytes, part: bytes
) -> None:
    _, url = served
    others = [_connect(url) for _ in range(20)]
    for other in others:
        other.sendall(_HEAD % 1000)
    with _connect(url) as connection, httpx.Client(base_url=url, timeout=20) as client:
        assert client.post("/predict", content=_PHOTO).status_code == 200
        assert _dribble(connection, first, part) < 10
        assert client.get("/health").status_code == 200
    for other in others:
        assert other.recv(4096).startswith(b"HTTP/1.1 408 ")
        other.close()


def test_rejected_body_is_answered_before_it_has_arrived(
    served: tuple[subprocess.Popen[str], str],
) -> None:
    _, url = served
    with _connect(url) as connection:
        connection.sendall(_HEAD % 10**9 + bytes(50_000))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    chunked = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _connect(url) as connection:
        connection.sendall(chunked + b"20000\r\n" + bytes(0x20000) + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000, id="long header"),
        pytest.param(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", id="length"
        ),
    ],
)
def test_malformed_http_is_a_bad_request(
    served: tuple[subprocess.Popen[str], str], request_bytes: bytes
) -> None:
    _, url = served
    with _connect(url) as connection:
        connection.sendall(request_bytes)
        assert b" 400 " in connection.recv(4096)


def test_port_in_use_is_one_message(served: tuple[subprocess.Popen[str], str]) -> None:
    _, url = served
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"^Port {port} of 127\.0\.0\.1 is in use.* --port 0\.$"):
        open_socket("127.0.0.1", port)


def test_unusable_address_is_one_message() -> None:
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid: unknown host"):
        open_socket("no.such.host.invalid", 0)
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        open_socket("192.0.2.1", 0)


def _stop_during_a_request(process: subprocess.Popen[str], url: str, number: int) -> str:
    """Send a signal in the middle of a request, finish the request, and return the messages."""
    with _connect(url) as connection, _connect(url):
        connection.sendall(_HEAD % len(_PHOTO) + _PHOTO[:100])
        time.sleep(0.1)
        process.send_signal(number)
        time.sleep(0.3)
        connection.sendall(_PHOTO[100:])
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"top":' in answer
    assert process.stdout is not None
    return process.stdout.read()


def test_sigterm_ends_with_code_0_after_the_last_answer(model_folder: Path, tmp_path: Path) -> None:
    with start_server(model_folder, tmp_path) as (process, url):  # not the one of other tests
        said = _stop_during_a_request(process, url, signal.SIGTERM)
        assert process.wait(20) == 0
    assert said == "Stopped.\n"


@pytest.mark.slow
def test_ctrl_c_ends_with_code_130_after_the_last_answer(
    model_folder: Path, tmp_path: Path
) -> None:
    with start_server(model_folder, tmp_path) as (process, url):
        said = _stop_during_a_request(process, url, signal.SIGINT)
        assert process.wait(20) == 130
    assert said == "Stopped.\n"
