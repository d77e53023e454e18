"""A linear probe by finetune against the PyTorch transfer tutorial's frozen loop, in one process.

    uv run python scripts/benchmarks/probe.py photos/ --weights resnet18.pth

The tutorial trains the head for 5 epochs on a frozen backbone (SGD 0.001, momentum 0.9, batches of
4, random crops and mirrors) and validates after each. finetune runs `--unfreeze linear_probe`: with
empty stores, then again with another imbalance option, when the features are known. "probe" is that
alone, "fit" all of the command after the imports: scan, audit, probe, measurement, bundle. Imports
are in none of them and are reported apart. Takes turns for --rounds; ratios are within a round.

photos/ needs train and val.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

_START = time.perf_counter()

import torch
from rounds import (
    new_parser,
    print_environment,
    processor,
    ratios,
    set_missing,
    spread,
    versions,
    write_json,
)
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import finetune
from finetune.commands.fit.fit import fit as _fit
from finetune.models.backbone import create_network
from finetune.types import Reporter

_IMPORTS = time.perf_counter() - _START

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Listening(Reporter):
    """Keeps what the probe says of itself."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def probe(self, found: Any) -> None:
        """Keep it."""
        self.found = dict(found)


def tutorial(options: Namespace) -> dict[str, float]:
    """Return seconds and best accuracy of the tutorial's loop."""
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
            right = sum(
                int((model(images).argmax(dim=1) == labels).sum())
                for images, labels in DataLoader(val, batch_size=4)
            )
        best = max(best, right / len(val))
    return {"seconds": time.perf_counter() - start, "accuracy": best}


def probed(options: Namespace, folder: Path, imbalance: str) -> dict[str, float]:
    """Return seconds and accuracy of a linear probe by finetune."""
    listening = Listening()
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
    metrics = finetune.fit(config, reporter=listening).metrics["val"]
    seconds = time.perf_counter() - start
    return {"fit": seconds, "probe": listening.found["seconds"], "accuracy": metrics["accuracy"]}


def round_of(options: Namespace) -> dict[str, dict[str, float]]:
    """Return what each of the three comes to, on stores of their own."""
    with tempfile.TemporaryDirectory() as name, _stores_in(Path(name) / "stores"):
        return {
            "tutorial": tutorial(options),
            "first": probed(options, Path(name), "none"),
            "second": probed(options, Path(name), "class_weights"),
        }


def _stores_in(folder: Path) -> Any:
    from unittest.mock import patch

    return patch.dict("os.environ", {"FINETUNE_CACHE": str(folder)})


def main() -> None:
    """Take turns and print the ratios."""
    parser = new_parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, help="of the tutorial")
    options = parser.parse_args()
    defaults = {"rounds": 1, "epochs": 1} if options.quick else {"rounds": 3, "epochs": 5}
    set_missing(options, defaults)
    rounds = []
    for number in range(options.rounds):
        rounds.append(round_of(options))
        print(f"round {number + 1}: {rounds[-1]}", flush=True)
    libraries = versions(("torch", "torchvision", "timm", "finetune"))
    print_environment({"processor": processor(), "versions": libraries})
    print(f"imports {_IMPORTS:.1f} s, in none of these")
    loop = [found["tutorial"]["seconds"] for found in rounds]
    print(f"tutorial, {options.epochs} epochs: {statistics.median(loop):.1f} s")
    for run in ("first", "second"):
        for part in ("probe", "fit"):
            took = [found[run][part] for found in rounds]
            shown = spread(ratios(loop, took))
            print(f"{run} {part}: {statistics.median(took):.2f} s, 1/{shown} of the tutorial's")
    for name in ("tutorial", "first"):
        values = [found[name]["accuracy"] for found in rounds]
        print(f"accuracy of {name}: {statistics.mean(values):.4f}")
    write_json(options.json, {"imports": _IMPORTS, "rounds": rounds})


if __name__ == "__main__":
    main()
