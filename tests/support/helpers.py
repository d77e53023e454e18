"""Deterministic images, small disks, a recording reporter and Python processes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.types import Reporter

ROOT = Path(__file__).parents[2]


def create_noise(*, seed: int = 0, width: int = 12, height: int = 10) -> Image.Image:
    """Return an RGB image of noise, determined by the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def create_smooth_image(*, width: int, height: int) -> Image.Image:
    """Return an RGB image of smooth gradients, as in photos."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17) * np.cos(y / 23), np.sin((x + y) / 31), np.cos(x / 41 - y / 13)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


def write_images(root: Path, *names: str) -> Path:
    """Write one image of different noise per name below ``root``, and return ``root``."""
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        create_noise(seed=seed).save(file)
    return root


def list_names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, including hidden ones."""
    return sorted(entry.name for entry in folder.iterdir())


def list_tree(folder: Path) -> list[str]:
    """Return the sorted relative paths of all files and folders below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class RecordingReporter(Reporter):
    """Reporter that records notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        """Record a note."""
        self.notes.append(message)

    def warn(self, message: str) -> None:
        """Record a warning."""
        self.warnings.append(message)


class InterruptingReporter(RecordingReporter):
    """Reporter that receives a stop signal with a note or at the start of a task.

    Args:
        moment: Beginning of the note or of the task's name.
        signum: Signal.
    """

    def __init__(self, moment: str, signum: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self._moment = moment
        self._signum = signum

    def note(self, message: str) -> None:
        """Record a note, and receive the signal if it is its moment."""
        super().note(message)
        self._interrupt_at(message)

    def start(self, task: str, total: int) -> None:
        """Receive the signal if a task is its moment."""
        self._interrupt_at(task)

    def _interrupt_at(self, text: str) -> None:
        if text.startswith(self._moment):
            signal.raise_signal(self._signum)


@contextmanager
def mount_tiny_disk(place: Path, *, size: str) -> Iterator[Path]:
    """Mount a file system of ``size`` within the block; skip the test if mounting fails."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if process.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted: {process.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=True)


def run_python(code: str, *arguments: object) -> str:
    """Run code in a new Python process, which must succeed, and return its output."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
