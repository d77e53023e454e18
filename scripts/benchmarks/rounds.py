"""What the benchmarks of training share: made folders, turns between contenders, and spreads."""

import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from made_photos import make_photos, photo_bytes_per_px

from finetune.build import Training, build_training
from finetune.commands.read_data import data_path, read_data
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.types import Reporter

LIBRARIES = ("torch", "timm", "pytorch-lightning", "torchvision", "numpy")
MADE_PHOTOS = 256  # more are copies of these: files of their own, but quicker to make
WIDTH = 96  # columns of the tables

Result = TypeVar("Result")


def new_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that every benchmark of training has."""
    parser = ArgumentParser(
        description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="few images and rounds, to try it")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: all there are")
    parser.add_argument("--precision", choices=("auto", "32-true", "bf16-mixed"), default="auto")
    return parser


def set_missing(options: Namespace, defaults: Mapping[str, Any]) -> None:
    """Fill the options that were not given."""
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


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


def take_turns(
    contenders: Mapping[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Return each contender's results; every round starts with another of them."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            results[name].append(contenders[name]())
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of two contenders in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Return the median, with the least and the most."""
    return f"{statistics.median(values):5.2f} [{min(values):.2f}-{max(values):.2f}]"


def environment(options: Namespace) -> dict[str, str]:
    """Return what the figures depend on, after giving torch its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(options.threads or cores or 1)
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    device = chosen_device(options.device)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = [f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES]
    return {
        "processor": f"{(names or [platform.processor()])[0]}, {cores} cores{load}",
        "device": f"{name}, {torch.get_num_threads()} threads of torch",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def print_environment(found: Mapping[str, str]) -> None:
    """Print it, a line each."""
    for name, value in found.items():
        print(f"{name}: {value}")


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write every single figure, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2), encoding="utf-8")
