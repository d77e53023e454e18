"""What the benchmarks of training share: options, devices, configs, made folders of photos."""

import os
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rounds
import torch
from made_photos import make_photos, photo_bytes_per_px

from finetune.builders import Training, build_training
from finetune.commands.prepare_data import resolve_data_path, read_data
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.types import Reporter

LIBRARIES = ("torch", "timm", "pytorch-lightning", "torchvision", "numpy")
MADE_PHOTOS = 256  # more are copies of these: files of their own, but quicker to make


def new_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that every benchmark of training has."""
    parser = rounds.new_parser(description)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: all there are")
    parser.add_argument("--precision", choices=("auto", "32-true", "bf16-mixed"), default="auto")
    return parser


def chosen_device(asked: str) -> str:
    """Return "cuda" where there is a GPU and the option is at "auto", else "cpu" or what it is."""
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def config_of(assignments: Mapping[str, Any]) -> Config:
    """Return the checked config of some dotted keys."""
    return build_config({}, assignments=assignments)


def training_of(config: Config) -> Training:
    """Return all objects of finetune's run, as ``finetune fit`` builds them."""
    manifest, _ = read_data(config, data_path(config), reporter=Reporter())
    return build_training(config, manifest)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards, also to finetune's cache of pixels."""
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
    made = min(count, MADE_PHOTOS)
    files = make_photos(folder, size, count=made, bytes_per_px=photo_bytes_per_px(*size))
    for index in range(made, count):
        file = files[index % made]
        shutil.copyfile(file, file.with_name(f"{index:06}.jpg"))
    return folder


def environment(options: Namespace) -> dict[str, str]:
    """Return what the figures depend on, after giving torch its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(options.threads or cores or 1)
    device = chosen_device(options.device)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "processor": f"{rounds.processor()}, {cores} cores{load}",
        "device": f"{name}, {torch.get_num_threads()} threads of torch",
        "versions": rounds.versions(LIBRARIES),
    }
