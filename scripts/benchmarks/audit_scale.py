"""Measures time and memory of `finetune inspect` on very many small images.

    uv run python scripts/benchmarks/audit_scale.py --images 100000

Makes JPEGs of 96 x 72 to 160 x 120 pixels, one in a hundred of them a changed copy of another one,
and runs the command as a user does, in a process of its own: first and again, when what was seen of
the files is known. Prints seconds, the peak of resident memory that is the process's own (what is
mapped from files comes and goes), and how many of the copies were found.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

_CLASSES = 20
_COPIED = 100
_SHAPES = 12


def make_image(number: int) -> Image.Image:
    """Return a picture of soft light and some shapes, a pure function of the number."""
    rng = np.random.default_rng(number)
    light = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    width = int(rng.integers(96, 161))
    image = light.resize((width, width * 3 // 4), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        left, top = rng.uniform(-0.1, 0.9, 2) * image.size
        size = rng.uniform(0.05, 0.4, 2) * image.size
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + size[0], top + size[1]), fill=colour)
    return image


def make_file(number: int, root: str) -> None:
    """Write an image; every hundredth is the one before it, mirrored and coded again."""
    copied = number % _COPIED == _COPIED - 1
    image = make_image(number - 1 if copied else number)
    if copied:
        image = ImageOps.mirror(image)
    quality = random.Random(number).randint(60, 95)
    image.save(Path(root) / f"class {number % _CLASSES:02}" / f"{number:08}.jpg", quality=quality)


def main() -> None:
    """Make the images, inspect them twice."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        for number in range(_CLASSES):
            (root / f"class {number:02}").mkdir(parents=True)
        with ProcessPoolExecutor() as pool:
            for _ in pool.map(make_file, range(options.images), repeat(str(root)), chunksize=256):
                pass
        size = sum(file.stat().st_size for file in root.rglob("*.jpg"))
        print(f"{options.images} images, {size / 1e6:.0f} MB")
        print(f"{'':<8} {'seconds':>8} {'peak MB':>8} {'copies found':>14}")
        for run in ("first", "again"):
            seconds, peak, tree = _inspected(root, Path(folder))
            planted = options.images // _COPIED
            found = sum(_are_planted(group["paths"]) for group in tree["copies"])
            others = len(tree["copies"]) - found
            print(
                f"{run:<8} {seconds:>8.1f} {peak:>8.0f} {found:>6} of {planted:<6} "
                f"{others} other groups",
                flush=True,
            )


def _inspected(root: Path, folder: Path) -> tuple[float, float, dict[str, Any]]:
    env = {**os.environ, "FINETUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "finetune", "inspect", str(root), "--json"]
    start = time.perf_counter()
    with (folder / "out.json").open("w") as out:
        process = subprocess.Popen(
            [*command, "--output", str(folder / "audit")], stdout=out, env=env, cwd=folder
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _own_megabytes(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - start
    return seconds, peak, json.loads((folder / "out.json").read_text())


def _own_megabytes(pid: int) -> float:
    """Return the resident memory of a process that is no file's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def _are_planted(paths: list[str]) -> bool:
    numbers = sorted(int(Path(path).stem) for path in paths)
    return len(numbers) == 2 and numbers[1] == numbers[0] + 1 and numbers[1] % _COPIED == 99


if __name__ == "__main__":
    main()
