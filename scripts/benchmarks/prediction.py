"""Throughput of prediction beside the bare network, and its memory over many files.

    uv run python scripts/benchmarks/prediction.py [--quick]
    uv run python scripts/benchmarks/prediction.py --memory 100000 1000000

The first form predicts synthetic JPEG photos of 500 x 375 px with a network of random weights.
Three contenders alternate in rounds: the network on pixels that are decoded already, in the same
batches; the whole of prediction on pixels that are decoded already; and the whole of prediction
from files. Their images per second and CPU milliseconds per image (user and system) are printed,
and the throughput relative to the bare network in the same round: median [minimum-maximum].

With ``--memory`` it runs ``finetune predict`` on lists of so many paths to a few small files, with
a small network, and prints the peak of its resident memory and its time.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import timm
import torch

from finetune.bundle.bundle import ModelBundle, save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.data.images.source import EncodedSource
from finetune.data.streams.stream_image import StreamImage, StreamSource
from finetune.inference.prediction_stream import predict_stream
from finetune.inference.predictor import Predictor
from finetune.system.hardware import prepare_accelerator
from finetune.types import PreprocessSpec
from scripts.benchmarks.lib.rounds import (
    compute_ratios,
    create_parser,
    run_rounds,
    set_missing,
    write_json,
)
from scripts.benchmarks.lib.synthetic_photos import estimate_bytes_per_px, make_photos

CLASSES = ("heath", "shore", "wood")
SIZE = (500, 375)


@dataclass(frozen=True)
class Run:
    """Wall and CPU seconds of a prediction of all images."""

    seconds: float
    cpu_seconds: float


def main() -> None:
    """Run the benchmark, and print its table."""
    parser = create_parser(__doc__)
    parser.add_argument("--backbone", default="resnet18", help="network of timm")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch")
    parser.add_argument("--images", type=int, help="number of photos")
    parser.add_argument("--memory", type=int, nargs="+", metavar="N", help="numbers of paths")
    options = parser.parse_args()
    if options.memory:
        report: dict[str, Any] = {"memory": [measure_memory(count) for count in options.memory]}
    else:
        defaults = {"images": 64, "rounds": 1} if options.quick else {"images": 512, "rounds": 5}
        set_missing(options, defaults)
        report = measure_throughput(options)
    write_json(options.json, report)


def measure_throughput(options: Namespace) -> dict[str, Any]:
    """Time the contenders and print the table."""
    device = prepare_accelerator(options.device)
    predictor = Predictor(
        create_bundle(options.backbone, 224), device=device, batch_size=options.batch_size
    )
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(
            Path(folder), SIZE, count=options.images, bytes_per_px=estimate_bytes_per_px(*SIZE)
        )
        images = [StreamImage(str(file), file) for file in photos]
        source = StreamSource(images)
        decoded = [predictor.load_views(source, row) for row in range(len(images))]
        view_of = {image.name: view for image, view in zip(images, decoded, strict=True)}

        def compute_bare() -> None:
            for first in range(0, len(decoded), options.batch_size):
                views = decoded[first : first + options.batch_size]
                predictor.compute_logits([torch.stack(same) for same in zip(*views, strict=True)])

        def load_decoded(_: Predictor, source: EncodedSource, row: int) -> list[torch.Tensor]:
            return view_of[source.get_name(row)]

        def predict_files() -> None:
            for _ in predict_stream(predictor, images):
                pass

        def predict_decoded() -> None:
            with mock.patch.object(Predictor, "load_views", load_decoded):
                predict_files()

        contenders = {
            "bare network": compute_bare,
            "prediction, decoded pixels": predict_decoded,
            "prediction, files": predict_files,
        }
        for work in contenders.values():  # a first run that is not timed
            work()
        runs = run_rounds(
            {name: partial(measure, work) for name, work in contenders.items()}, options.rounds
        )
    print(
        f"{options.backbone}, {options.images} photos of {SIZE[0]} x {SIZE[1]} px, batches of "
        f"{options.batch_size}, {device}, {torch.get_num_threads()} threads of torch, "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    print(f"{'':28}{'images/s':>10}{'CPU ms':>9}  relative to the bare network")
    bare = [run.seconds for run in runs["bare network"]]
    for name, measured in runs.items():
        ratios = compute_ratios(bare, [run.seconds for run in measured])
        speed = options.images / median(run.seconds for run in measured)
        cpu = 1000 * median(run.cpu_seconds for run in measured) / options.images
        low, high = min(ratios), max(ratios)
        print(f"{name:28}{speed:>10.1f}{cpu:>9.2f}  {median(ratios):.3f} [{low:.3f}-{high:.3f}]")
    return {name: [asdict(run) for run in measured] for name, measured in runs.items()}


def measure(work: Callable[[], None]) -> Run:
    """Return the time that work takes."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return Run(time.perf_counter() - start, time.process_time() - cpu)


def measure_memory(count: int) -> dict[str, Any]:
    """Predict a list of paths in a process of its own; print and return its peak of memory."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = create_bundle("test_resnet", 32)
        save_bundle(bundle.network, bundle.card, folder / "model")
        photos = make_photos(folder / "photos", (48, 40), count=8, bytes_per_px=0.5)
        links = folder / "links"
        with (folder / "list.txt").open("w") as stream:
            for number in range(count):  # names of their own, as predictions are named by them
                file = photos[number % len(photos)]
                stream.write(f"{links}/{'../' if number % 2 else ''}{file.name}\n")
        links.mkdir()
        for file in photos:
            os.link(file, links / file.name)
            os.link(file, folder / file.name)
        start = time.perf_counter()
        command = [
            sys.executable, "-m", "finetune", "predict", "model", "list.txt", "--output", "p.csv",
            "--batch-size", "256", "--device", "cpu",
        ]  # fmt: skip
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        with (folder / "p.csv").open() as stream:
            rows = sum(1 for _ in stream) - 1
    print(
        f"{count:>10,} files: peak {peak / 1e6:.0f} MB, {seconds:.0f} s, {rows:,} rows", flush=True
    )
    return {"files": count, "peak_bytes": peak, "seconds": seconds, "rows": rows}


def create_bundle(backbone: str, side: int) -> ModelBundle:
    """Return a model with random weights."""
    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=len(CLASSES)).eval()
    spec = PreprocessSpec((3, side, side), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return ModelBundle(network, ModelCard(backbone, {}, CLASSES, spec), Path())


if __name__ == "__main__":
    main()
