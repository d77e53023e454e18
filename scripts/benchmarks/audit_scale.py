"""Time and memory of `finetune inspect` on a hundred thousand small images.

    uv run python scripts/benchmarks/audit_scale.py --images 100000

Writes JPEGs of 96 x 72 to 160 x 120 pixels, one in a hundred of them a changed copy of another one,
and runs the command in a process: first with an empty cache, then again with cached fingerprints.
Prints the seconds, the peak resident memory of the process without file mappings, and the number of
duplicates found.
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
_DUPLICATE_PERIOD = 100
_SHAPES = 12


def make_image(number: int) -> Image.Image:
    """Return an image of smooth light and some shapes, as a pure function of the number."""
    rng = np.random.default_rng(number)
    light = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    width = int(rng.integers(96, 161))
    image = light.resize((width, width * 3 // 4), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        left, top = rng.uniform(-0.1, 0.9, 2) * image.size
        size = rng.uniform(0.05, 0.4, 2) * image.size
        color = tuple(int(part) for part in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + size[0], top + size[1]), fill=color)
    return image


def make_file(number: int, root: str) -> None:
    """Write an image; every hundredth is the previous one, flipped and encoded again."""
    is_duplicate = number % _DUPLICATE_PERIOD == _DUPLICATE_PERIOD - 1
    image = make_image(number - 1 if is_duplicate else number)
    if is_duplicate:
        image = ImageOps.mirror(image)
    quality = random.Random(number).randint(60, 95)
    image.save(Path(root) / f"class {number % _CLASSES:02}" / f"{number:08}.jpg", quality=quality)


def main() -> None:
    """Write the images and inspect them twice."""
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
        print(f"{'':<8} {'seconds':>8} {'peak MB':>8} {'duplicates':>14}")
        for run in ("first", "again"):
            seconds, peak, tree = _run_inspect(root, Path(folder))
            planted = options.images // _DUPLICATE_PERIOD
            found = sum(_is_planted(group["paths"]) for group in tree["duplicates"])
            others = len(tree["duplicates"]) - found
            print(
                f"{run:<8} {seconds:>8.1f} {peak:>8.0f} {found:>6} of {planted:<6} "
                f"{others} other groups",
                flush=True,
            )


def _run_inspect(root: Path, folder: Path) -> tuple[float, float, dict[str, Any]]:
    env = {**os.environ, "FINETUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "finetune", "inspect", str(root), "--json"]
    start = time.perf_counter()
    with (folder / "out.json").open("w") as out:
        process = subprocess.Popen(
            [*command, "--output", str(folder / "audit")], stdout=out, env=env, cwd=folder
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _read_anonymous_megabytes(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - start
    return seconds, peak, json.loads((folder / "out.json").read_text())


def _read_anonymous_megabytes(pid: int) -> float:
    """Return the resident memory of a process without file mappings, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def _is_planted(paths: list[str]) -> bool:
    numbers = sorted(int(Path(path).stem) for path in paths)
    return (
        len(numbers) == 2 and numbers[1] == numbers[0] + 1 and numbers[1] % _DUPLICATE_PERIOD == 99
    )


if __name__ == "__main__":
    main()
