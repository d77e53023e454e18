"""Small deterministic images on disk, and small disks, for the tests of every floor."""

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


def noise(*, seed: int = 0, width: int = 12, height: int = 10) -> Image.Image:
    """Return an RGB image whose pixels depend on the seed alone."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(*, width: int, height: int) -> Image.Image:
    """Return an RGB image of slow gradients, as photos are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17) * np.cos(y / 23), np.sin((x + y) / 31), np.cos(x / 41 - y / 13)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


def write_images(root: Path, *names: str) -> Path:
    """Write one image a name below ``root``, each with pixels of its own; return ``root``."""
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=seed).save(file)
    return root


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, the hidden ones too, sorted."""
    return sorted(entry.name for entry in folder.iterdir())


def everything(folder: Path) -> list[str]:
    """Return the paths of all that lies below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class Recorder(Reporter):
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        """Keep it."""
        self.notes.append(message)

    def warn(self, message: str) -> None:
        """Keep it."""
        self.warnings.append(message)


@contextmanager
def tiny_disk(place: Path, *, size: str) -> Iterator[Path]:
    """Mount a file system of ``size`` for the block; skip the test where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=True)


def run_python(code: str, *arguments: object) -> str:
    """Run a program in a Python of its own and return what it prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
