"""Linear probe of finetune compared with the frozen loop of PyTorch's transfer tutorial.

    uv run python scripts/benchmarks/probe.py photos/ --weights resnet18.pth

The tutorial trains the head for 5 epochs on a frozen backbone (SGD 0.001, momentum 0.9, batches of
4, random crops and flips) and validates after each. finetune runs `--unfreeze linear_probe`: first
with empty caches, then with another imbalance option and cached features. "probe" is the probe
alone, "fit" the whole command after the imports: scan, audit, probe, evaluation, bundle. Imports
are excluded and reported separately. The loops alternate in one process; ratios are within a
round.

photos/ must contain train and val.
"""

# ruff: noqa: E402 - the imports are timed

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_START = time.perf_counter()

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import finetune
import finetune.commands.fit.fit  # so that no import is timed later
from finetune.models.backbone import create_network
from finetune.types import Reporter
from scripts.benchmarks.lib.rounds import (
    compute_ratios,
    create_parser,
    format_spread,
    format_versions,
    print_environment,
    read_processor_name,
    set_missing,
    write_json,
)

_IMPORTS = time.perf_counter() - _START

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ProbeRecorder(Reporter):
    """Reporter that records the result of the probe."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Record the result."""
        self.result = dict(result)


def run_tutorial(options: Namespace) -> dict[str, float]:
    """Return the seconds and the best accuracy of the tutorial's loop."""
    start = time.perf_counter()
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    view = [transforms.Resize(256), transforms.CenterCrop(224)]
    train = ImageFolder(options.data / "train", transforms.Compose([*crop, *end]))
    val = ImageFolder(options.data / "val", transforms.Compose([*view, *end]))
    model = create_network(
        options.backbone, num_classes=len(train.classes), weights=str(options.weights)
    ).module
    head: Any = model.get_classifier()  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    criterion, best = nn.CrossEntropyLoss(), 0.0
    for _ in range(options.epochs):
        model.train()
        for images, labels in DataLoader(train, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            num_correct = sum(
                int((model(images).argmax(dim=1) == labels).sum())
                for images, labels in DataLoader(val, batch_size=4)
            )
        best = max(best, num_correct / len(val))
    return {"seconds": time.perf_counter() - start, "accuracy": best}


def run_probe(options: Namespace, folder: Path, imbalance: str) -> dict[str, float]:
    """Return the seconds and the accuracy of a linear probe of finetune."""
    recorder = ProbeRecorder()
    config = finetune.Config.model_validate(
        {
            "data": {"path": str(options.data)},
            "model": {"backbone": options.backbone, "weights": str(options.weights)},
            "unfreeze": {"name": "linear_probe"},
            "imbalance": {"strategy": imbalance},
            "output": str(folder / imbalance),
        }
    )
    start = time.perf_counter()
    metrics = finetune.fit(config, reporter=recorder).metrics["val"]
    seconds = time.perf_counter() - start
    accuracy = metrics["accuracy"] or 0.0
    return {"fit": seconds, "probe": recorder.result["seconds"], "accuracy": accuracy}


def run_round(options: Namespace) -> dict[str, dict[str, float]]:
    """Return the results of the three contenders, with new caches."""
    with tempfile.TemporaryDirectory() as name, _set_cache_dir(Path(name) / "cache"):
        return {
            "tutorial": run_tutorial(options),
            "first": run_probe(options, Path(name), "none"),
            "second": run_probe(options, Path(name), "class_weights"),
        }


def _set_cache_dir(folder: Path) -> Any:
    from unittest.mock import patch

    return patch.dict("os.environ", {"FINETUNE_CACHE": str(folder)})


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = create_parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, help="epochs of the tutorial")
    options = parser.parse_args()
    defaults = {"rounds": 1, "epochs": 1} if options.quick else {"rounds": 3, "epochs": 5}
    set_missing(options, defaults)
    rounds = []
    for number in range(options.rounds):
        rounds.append(run_round(options))
        print(f"round {number + 1}: {rounds[-1]}", flush=True)
    libraries = format_versions(("torch", "torchvision", "timm", "finetune-vision"))
    print_environment({"processor": read_processor_name(), "versions": libraries})
    print(f"imports {_IMPORTS:.1f} s, excluded")
    loop = [result["tutorial"]["seconds"] for result in rounds]
    print(f"tutorial, {options.epochs} epochs: {statistics.median(loop):.1f} s")
    for run in ("first", "second"):
        for part in ("probe", "fit"):
            seconds = [result[run][part] for result in rounds]
            speed_up = format_spread(compute_ratios(loop, seconds))
            print(f"{run} {part}: {statistics.median(seconds):.2f} s, 1/{speed_up} of the tutorial")
    for name in ("tutorial", "first"):
        values = [result[name]["accuracy"] for result in rounds]
        print(f"accuracy of {name}: {statistics.mean(values):.4f}")
    write_json(options.json, {"imports": _IMPORTS, "rounds": rounds})


if __name__ == "__main__":
    main()
