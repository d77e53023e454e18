"""Two nodes on this machine: network namespaces joined by a virtual cable that can be cut.

They share the disk, as nodes of a cluster do. Needs root and iproute2.
"""

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

INTERFACE = "cable"
"""Name of the network interface on each node."""

ADDRESSES = ("10.77.0.1", "10.77.0.2")

_number = itertools.count()


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """Two nodes with a network between them.

    Attributes:
        names: Names of their namespaces.
    """

    names: tuple[str, str]

    def build_prefix(self, node: int) -> tuple[str, ...]:
        """Return the command prefix that runs a command on a node."""
        return ("ip", "netns", "exec", self.names[node])

    def disconnect(self) -> None:
        """Cut the cable; connections are lost silently."""
        _run_ip("-n", self.names[1], "link", "set", INTERFACE, "down")

    def reconnect(self) -> None:
        """Join the cable again."""
        _run_ip("-n", self.names[1], "link", "set", INTERFACE, "up")

    def shorten_tcp_timeout(self) -> None:
        """Let connections fail seconds after the cable is cut instead of after 15 minutes."""
        for node in range(2):
            command = (*self.build_prefix(node), "tee", "/proc/sys/net/ipv4/tcp_retries2")
            subprocess.run(command, input=b"5", stdout=subprocess.DEVNULL, check=True)

    def kill_processes(self, *nodes: int) -> None:
        """Kill all processes of the given nodes, or of both."""
        for node in nodes or (0, 1):
            for pid in _run_ip("netns", "pids", self.names[node]).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@contextmanager
def create_two_nodes() -> Iterator[TwoNodes]:
    """Yield two joined nodes; skip the test if namespaces cannot be created."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    number = f"{os.getpid()}-{next(_number)}"
    nodes = TwoNodes((f"finetune-{number}-a", f"finetune-{number}-b"))
    created = []
    try:
        for name in nodes.names:
            try:
                _run_ip("netns", "add", name)
            except RuntimeError as error:
                pytest.skip(f"network namespaces cannot be created: {error}")
            created.append(name)
        _connect(*nodes.names)
        yield nodes
        nodes.kill_processes()
    finally:
        for name in created:
            _run_ip("netns", "delete", name)


def _connect(one: str, other: str) -> None:
    _run_ip(
        *("link", "add", INTERFACE, "netns", one),
        *("type", "veth", "peer", "name", INTERFACE, "netns", other),
    )
    for name, address in zip((one, other), ADDRESSES, strict=True):
        _run_ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
        for device in ("lo", INTERFACE):
            _run_ip("-n", name, "link", "set", device, "up")


def _run_ip(*args: str) -> str:
    """Return the output of ``ip``."""
    process = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)}: {process.stderr.strip()}")
    return process.stdout
