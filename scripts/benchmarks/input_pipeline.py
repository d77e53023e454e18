"""Input pipelines on one core, from JPEG files to batches of training images of 224 px.

    uv run --with fastai python scripts/benchmarks/input_pipeline.py

Prints three tables for each photo size: decoding alone, with each decoder in a new process; whole
pipelines, all through torch's DataLoader without workers; and the PSNR of crops to a full decode
with antialiased resizing, for random boxes and for boxes with edges at multiples of 8 pixels
("edges by 8"). Pipelines alternate in rounds, after one epoch that is not timed. Times are
milliseconds per image; "x" is the speed-up over the first row in the same round: median, minimum
and maximum of the rounds. User time is listed separately because at 12 megapixels the kernel's page
faults can take as long as the decoding. The default is 5 rounds. Contenders whose library is not
installed are skipped.
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

from scripts.benchmarks.lib.costs import Cost, Costs, measure, print_costs
from scripts.benchmarks.lib.decoders import DECODERS, decode_all, run_in_new_process
from scripts.benchmarks.lib.fidelity import compare_crops, print_scores
from scripts.benchmarks.lib.pipelines import PIPELINES, run_epoch, warm_up
from scripts.benchmarks.lib.rounds import (
    create_parser,
    format_versions,
    print_environment,
    read_processor_name,
    run_rounds,
    set_missing,
    write_json,
)
from scripts.benchmarks.lib.synthetic_photos import (
    compute_mean_bytes,
    estimate_bytes_per_px,
    make_photos,
)

Files = list[Path]
Part = Callable[[Files, Namespace], dict[str, Any]]

BATCH_SIZE = 32
SPARSE_BYTES_PER_PX, SPARSE_FROM_PX = 0.1, 4_000_000  # strongly compressed photos, decoding only
LIBRARIES = "torch torchvision timm pillow opencv-python-headless albumentations fastai simplejpeg"


def run_decoders(files: Files, options: Namespace) -> dict[str, Any]:
    """Time the decoders and print the table."""
    contenders: dict[str, Callable[[], Cost]] = {}
    skipped: dict[str, str] = {}
    for name, decode in DECODERS.items():
        with skip_missing(name, skipped):
            decode(files[0])
            work = partial(decode_all, decode, files, min_seconds=options.min_seconds)
            contenders[name] = partial(run_in_new_process, work)
    costs = run_rounds(contenders, options.rounds)
    print_costs("decoding, ms per image", costs, notes={})
    print_skipped(skipped)
    return to_json(costs)


def run_pipelines(files: Files, options: Namespace) -> dict[str, Any]:
    """Time the pipelines on the folder of the files and print the table."""
    contenders: dict[str, Callable[[], Cost]] = {}
    dtypes: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, build in PIPELINES.items():
        with skip_missing(name, skipped):
            loader = build(files[0].parents[1], min(BATCH_SIZE, len(files)))
            dtypes[name] = warm_up(loader)
            work = partial(run_epoch, loader)
            contenders[name] = partial(measure, work, min_seconds=options.min_seconds)
    costs = run_rounds(contenders, options.rounds)
    print_costs("pipelines, ms per image", costs, notes=dtypes)
    print_skipped(skipped)
    return to_json(costs)


def run_fidelity(files: Files, options: Namespace) -> dict[str, Any]:
    """Compare the crops of the files and print the table."""
    scores = compare_crops(files[: options.fidelity_files], boxes=options.boxes)
    print_scores(scores)
    return dict(scores)


PARTS: dict[str, Part] = {
    "decode": run_decoders,
    "pipelines": run_pipelines,
    "fidelity": run_fidelity,
}


@contextmanager
def skip_missing(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """Record a missing library in ``skipped`` instead of ending the benchmark."""
    try:
        yield
    except ModuleNotFoundError as error:
        skipped[name] = f"{error}: run with `uv run --with {error.name}`"


def print_skipped(skipped: dict[str, str]) -> None:
    """Print the skipped contenders with reasons."""
    for name, reason in skipped.items():
        print(f"{name:25} skipped: {reason}")


def to_json(costs: Costs) -> dict[str, Any]:
    """Return the costs as JSON values."""
    return {name: [asdict(row) for row in rows] for name, rows in costs.items()}


def use_one_core() -> str:
    """Pin this process and its children to one core, and return a description."""
    pinning = "not pinned"
    if hasattr(os, "sched_setaffinity"):
        last = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {last})
        pinning = f"pinned to core {last}"
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    return pinning


def describe_environment() -> dict[str, str]:
    """Return the processor, load, allocator and versions."""
    malloc = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))]
    return {
        "processor": f"{read_processor_name()}, {use_one_core()}",
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "malloc": " ".join(malloc) or "defaults",
        "versions": format_versions(LIBRARIES.split()),
    }


def parse_options() -> Namespace:
    """Return the command's options."""
    parser = create_parser(__doc__)
    parser.add_argument("--images", type=int, help="photos per size; default 96, 64 or 16")
    parser.add_argument("--sizes", default="500x375,1024x768,4000x3000")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    options.min_seconds = 0.05 if options.quick else 0.3
    options.fidelity_files, options.boxes = (2, 2) if options.quick else (8, 6)
    set_missing(options, {"images": 4, "rounds": 2} if options.quick else {"rounds": 5})
    return options


def choose_num_images(width: int, height: int) -> int:
    """Return a number of photos with which the whole run takes less than six minutes."""
    megapixels = width * height / 1e6
    return 96 if megapixels < 0.5 else 64 if megapixels < 4 else 16


def run_photos(
    size: tuple[int, int], bytes_per_px: float, parts: Iterable[str], options: Namespace
) -> dict[str, Any]:
    """Make photos of one size and density, and run parts of the benchmark on them."""
    count = choose_num_images(*size) if options.images is None else options.images
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), size, count=count, bytes_per_px=bytes_per_px)
        mean_bytes = compute_mean_bytes(files)
        photos = {"size": size, "count": count, "mean_bytes": mean_bytes}
        density = mean_bytes / size[0] / size[1]
        title = f"{size[0]}x{size[1]}: {count} photos of {mean_bytes / 1000:.0f} kB"
        print(f"\n=== {title} ({density:.2f} bytes per px)")
        return {"photos": photos, **{part: PARTS[part](files, options) for part in parts}}


def main() -> None:
    """Run the parts on photos of each size, and decoding on large, strongly compressed ones."""
    options = parse_options()
    report: dict[str, Any] = {"environment": describe_environment(), "runs": []}
    print_environment(report["environment"])
    for text in options.sizes.split(","):
        width, height = map(int, text.split("x"))
        density = estimate_bytes_per_px(width, height)
        report["runs"].append(run_photos((width, height), density, options.parts, options))
        if "decode" in options.parts and width * height > SPARSE_FROM_PX:
            sparse = run_photos((width, height), SPARSE_BYTES_PER_PX, ["decode"], options)
            report["runs"].append(sparse)
    write_json(options.json, report)


if __name__ == "__main__":
    main()
