"""Times input pipelines on one core, from JPEG files to batches of training images of 224 px.

    uv run --with fastai python scripts/benchmarks/input_pipeline.py

Prints three tables for each size of photo: decoding alone, each decoder in a fresh process;
whole pipelines, all through torch's DataLoader without workers; and how near a crop comes to a
full decode with antialiased resizing, for boxes as they are drawn and with edges on multiples of 8
pixels ("edges by 8"). Pipelines take turns round by round, after one epoch that is not timed. Times
are milliseconds per image; "x" is how many times less than the first row's in the same round: the
median, and the least and most of the rounds. User time stands apart because at 12 megapixels the
kernel's page faults can take as long as the work. There are 5 rounds unless told otherwise. What
needs a library that is not installed is skipped.
"""

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from costs import Cost, Costs, measure, print_costs
from decoders import DECODERS, decode_all, in_fresh_process
from fidelity import compare_crops, print_scores
from made_photos import make_photos, mean_bytes, photo_bytes_per_px
from pipelines import PIPELINES, epoch, warm_up
from rounds import (
    new_parser,
    print_environment,
    processor,
    set_missing,
    take_turns,
    versions,
    write_json,
)

Files = list[Path]
Part = Callable[[Files, Namespace], dict[str, Any]]

BATCH_SIZE = 32
SPARSE_BYTES_PER_PX, SPARSE_FROM_PX = 0.1, 4_000_000  # soft photos of a camera, decoding only
LIBRARIES = "torch torchvision timm pillow opencv-python-headless albumentations fastai simplejpeg"


def decode_part(files: Files, options: Namespace) -> dict[str, Any]:
    """Time and print the decoders over some files."""
    contenders: dict[str, Callable[[], Cost]] = {}
    skipped: dict[str, str] = {}
    for name, decode in DECODERS.items():
        with skipping(name, skipped):
            decode(files[0])
            work = partial(decode_all, decode, files, least_seconds=options.least_seconds)
            contenders[name] = partial(in_fresh_process, work)
    costs = take_turns(contenders, options.rounds)
    print_costs("decoding, ms per image", costs, notes={})
    print_skipped(skipped)
    return as_json(costs)


def pipelines_part(files: Files, options: Namespace) -> dict[str, Any]:
    """Time and print the pipelines over the folder of some files."""
    contenders: dict[str, Callable[[], Cost]] = {}
    dtypes: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, build in PIPELINES.items():
        with skipping(name, skipped):
            loader = build(files[0].parents[1], min(BATCH_SIZE, len(files)))
            dtypes[name] = warm_up(loader)
            work = partial(epoch, loader)
            contenders[name] = partial(measure, work, least_seconds=options.least_seconds)
    costs = take_turns(contenders, options.rounds)
    print_costs("pipelines, ms per image", costs, notes=dtypes)
    print_skipped(skipped)
    return as_json(costs)


def fidelity_part(files: Files, options: Namespace) -> dict[str, Any]:
    """Compare and print the crops of some files."""
    scores = compare_crops(files[: options.fidelity_files], boxes=options.boxes)
    print_scores(scores)
    return dict(scores)


PARTS: dict[str, Part] = {
    "decode": decode_part,
    "pipelines": pipelines_part,
    "fidelity": fidelity_part,
}


@contextmanager
def skipping(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """Note in ``skipped`` which library is missing, instead of ending the benchmark."""
    try:
        yield
    except ModuleNotFoundError as error:
        skipped[name] = f"{error}: run with `uv run --with {error.name}`"


def print_skipped(skipped: dict[str, str]) -> None:
    """Print what is missing from a table, and why."""
    for name, reason in skipped.items():
        print(f"{name:25} skipped: {reason}")


def as_json(costs: Costs) -> dict[str, Any]:
    """Return the costs as plain containers."""
    return {name: [asdict(row) for row in rows] for name, rows in costs.items()}


def use_one_core() -> str:
    """Hold this process and those it starts to one core, and return which."""
    core = "not pinned"
    if hasattr(os, "sched_setaffinity"):
        last = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {last})
        core = f"pinned to core {last}"
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    return core


def environment() -> dict[str, str]:
    """Return what the figures depend on: processor, load, allocator and versions."""
    malloc = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))]
    return {
        "processor": f"{processor()}, {use_one_core()}",
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "malloc": " ".join(malloc) or "defaults",
        "versions": versions(LIBRARIES.split()),
    }


def parse_options() -> Namespace:
    """Return the command's options."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, help="photos of each size; default 96, 64 or 16")
    parser.add_argument("--sizes", default="500x375,1024x768,4000x3000")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    options.least_seconds = 0.05 if options.quick else 0.3
    options.fidelity_files, options.boxes = (2, 2) if options.quick else (8, 6)
    set_missing(options, {"images": 4, "rounds": 2} if options.quick else {"rounds": 5})
    return options


def usual_images(width: int, height: int) -> int:
    """Return how many photos of one size keep the whole run below six minutes."""
    megapixels = width * height / 1e6
    return 96 if megapixels < 0.5 else 64 if megapixels < 4 else 16


def run_photos(
    size: tuple[int, int], bytes_per_px: float, parts: Iterable[str], options: Namespace
) -> dict[str, Any]:
    """Make photos of one size and density, and run parts of the benchmark on them."""
    count = usual_images(*size) if options.images is None else options.images
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), size, count=count, bytes_per_px=bytes_per_px)
        photos = {"size": size, "count": count, "mean_bytes": mean_bytes(files)}
        density = photos["mean_bytes"] / size[0] / size[1]
        title = f"{size[0]}x{size[1]}: {count} photos of {photos['mean_bytes'] / 1000:.0f} kB"
        print(f"\n=== {title} ({density:.2f} bytes per px)")
        return {"photos": photos, **{part: PARTS[part](files, options) for part in parts}}


def main() -> None:
    """Run the parts on the photos of every size, and on sparse ones where decoding matters."""
    options = parse_options()
    report: dict[str, Any] = {"environment": environment(), "runs": []}
    print_environment(report["environment"])
    for text in options.sizes.split(","):
        width, height = map(int, text.split("x"))
        usual = photo_bytes_per_px(width, height)
        report["runs"].append(run_photos((width, height), usual, options.parts, options))
        if "decode" in options.parts and width * height > SPARSE_FROM_PX:
            sparse = run_photos((width, height), SPARSE_BYTES_PER_PX, ["decode"], options)
            report["runs"].append(sparse)
    write_json(options.json, report)


if __name__ == "__main__":
    main()
