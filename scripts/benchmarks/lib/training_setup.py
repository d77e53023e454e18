"""Options, devices, configs and synthetic datasets of the training benchmarks."""

import os
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finetune.builders import Training, build_training
from finetune.commands.prepare_data import read_data, resolve_data_path
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.types import Reporter
from scripts.benchmarks.lib import rounds
from scripts.benchmarks.lib.synthetic_photos import estimate_bytes_per_px, make_photos

LIBRARIES = ("torch", "timm", "pytorch-lightning", "torchvision", "numpy")
NUM_UNIQUE_PHOTOS = 256  # further files are copies of these, which is faster


def create_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options common to all training benchmarks."""
    parser = rounds.create_parser(description)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--threads", type=int, help="threads of torch on the CPU; default: all cores"
    )
    parser.add_argument("--precision", choices=("auto", "32-true", "bf16-mixed"), default="auto")
    return parser


def resolve_device(device: str) -> str:
    """Return the device; for "auto", "cuda" if available, else "cpu"."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def create_config(assignments: Mapping[str, Any]) -> Config:
    """Return the validated config of dotted keys."""
    return build_config({}, assignments=assignments)


def create_training(config: Config) -> Training:
    """Return the objects of a run, as ``finetune fit`` builds them."""
    data = read_data(config, resolve_data_path(config), reporter=Reporter())
    return build_training(config, data.manifest)


@contextmanager
def create_work_folder() -> Iterator[Path]:
    """Yield a temporary folder, which also contains finetune's caches."""
    with tempfile.TemporaryDirectory(prefix="finetune-benchmark-") as name:
        before = os.environ.get("FINETUNE_CACHE")
        os.environ["FINETUNE_CACHE"] = f"{name}/cache"
        try:
            yield Path(name)
        finally:
            del os.environ["FINETUNE_CACHE"]
            if before is not None:
                os.environ["FINETUNE_CACHE"] = before


def make_images(folder: Path, size: tuple[int, int], *, count: int) -> Path:
    """Write JPEGs of one size into a folder of two classes, and return the folder."""
    num_unique = min(count, NUM_UNIQUE_PHOTOS)
    density = estimate_bytes_per_px(*size)
    files = make_photos(folder, size, count=num_unique, bytes_per_px=density)
    for index in range(num_unique, count):
        file = files[index % num_unique]
        shutil.copyfile(file, file.with_name(f"{index:06}.jpg"))
    return folder


def describe_environment(options: Namespace) -> dict[str, str]:
    """Set the number of torch threads and return the description of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(options.threads or cores or 1)
    device = resolve_device(options.device)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "processor": f"{rounds.read_processor_name()}, {cores} cores{load}",
        "device": f"{name}, {torch.get_num_threads()} threads of torch",
        "versions": rounds.format_versions(LIBRARIES),
    }
