"""Two machines on this one: network namespaces joined by a cable that can be cut and mended.

They share the disk, as machines of a cluster do. Needs root and iproute2.
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
"""What each machine calls its end."""

ADDRESSES = ("10.77.0.1", "10.77.0.2")

_number = itertools.count()


@dataclass(frozen=True, slots=True)
class Machines:
    """Both machines.

    Attributes:
        names: Their namespaces.
    """

    names: tuple[str, str]

    def on(self, machine: int) -> tuple[str, ...]:
        """Return the words that run the command behind them on a machine."""
        return ("ip", "netns", "exec", self.names[machine])

    def cut(self) -> None:
        """Pull the cable out; nobody is told that connections are gone."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "up")

    def give_up_soon(self) -> None:
        """Let connections end seconds after the cable is cut; they live on for 15 minutes else."""
        for machine in range(2):
            command = (*self.on(machine), "tee", "/proc/sys/net/ipv4/tcp_retries2")
            subprocess.run(command, input=b"5", stdout=subprocess.DEVNULL, check=True)

    def kill_all(self, *machines: int) -> None:
        """End every process of some machines, or of both."""
        for machine in machines or (0, 1):
            for pid in _ip("netns", "pids", self.names[machine]).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Join two machines while the block lasts; skip the test where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip here: apt-get install iproute2")
    number = f"{os.getpid()}-{next(_number)}"
    machines = Machines((f"finetune-{number}-a", f"finetune-{number}-b"))
    made = []
    try:
        for name in machines.names:
            try:
                _ip("netns", "add", name)
            except RuntimeError as error:
                pytest.skip(f"no network namespace can be made: {error}")
            made.append(name)
        _connect(*machines.names)
        yield machines
        machines.kill_all()
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _connect(one: str, other: str) -> None:
    _ip(
        *("link", "add", INTERFACE, "netns", one),
        *("type", "veth", "peer", "name", INTERFACE, "netns", other),
    )
    for name, address in zip((one, other), ADDRESSES, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
        for device in ("lo", INTERFACE):
            _ip("-n", name, "link", "set", device, "up")


def _ip(*words: str) -> str:
    """Return what ``ip`` prints."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
