"""Times one training step per image: a tutorial's loop, and finetune's step at several depths.

    uv run python scripts/benchmarks/training_step.py --backbones resnet18,resnet50,googlenet

The tutorial's loop is float32, NCHW, trains everything, keeps BatchNorm in train mode and takes
torch.optim.AdamW as it comes; its input is a ready float32 batch. finetune's rows are the product:
its module, loss, optimizer, clipping and schedule, built by ``finetune.builders`` as for pretrained
weights, from a batch of its own loader (uint8 pixels and colour matrices, which its step turns into
the network's input). Lightning's loop around the step is not in it: see end_to_end.py --overhead.

All take turns round by round, after one step that is not timed. "times faster" is the first row
over this one in the same round: the median, the least and the most of the rounds. The last row is
computed from the others: the mean over the epochs of the default recipe (the head alone at first).
Weights are random; BatchNorm's statistics are set by one batch, so that values stay ordinary.
"""

import gc
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rounds import print_environment, ratios, set_missing, spread, take_turns, write_json
from steps import Step, finetune_step, one_batch, tutorial_step
from trainings import (
    chosen_device,
    config_of,
    environment,
    make_images,
    new_parser,
    synchronize,
    training_of,
    work_folder,
)

from finetune.builders import Training
from finetune.models.classifier import normalise
from finetune.training.schedules.unfreeze import resolve_depth

ASSIGNMENTS: dict[str, Any] = {
    # what "auto" chooses for pretrained weights, which are not needed to measure time
    "model.weights": "random",
    "model.batch_norm": "frozen",
    "unfreeze.name": "head_first",
    "unfreeze.params": {"epochs": 3},
    "trainer.epochs": 10,
    "data.num_workers": 0,
}
IMAGES, IMAGE_SIZE = 16, (320, 240)
TUTORIAL = "tutorial loop: fp32, NCHW"
RECIPE = "default recipe (computed)"
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What a step took: milliseconds per image, and peak memory in bytes on a GPU."""

    ms: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Contender:
    """A step that is ready, and the memory of the GPU that it holds between steps."""

    step: Step
    held_bytes: int


def contenders_of(backbone: str, folder: Path, options: Namespace) -> dict[str, Any]:
    """Return the training that the steps are of, the depth of each row, and how to make each."""
    assignments = ASSIGNMENTS | {
        "data.path": str(folder / "images"),
        "data.image_size": options.image_size or "auto",
        "model.backbone": backbone,
        "trainer.accelerator": options.device,
        "trainer.precision": options.precision,
    }
    build = partial(training_of, config_of(assignments))
    training = build()
    groups = len(training.module.classifier.groups)
    depths = {"everything": groups, "head only": 1, "last stage and head": 2}
    half = as_depth(0.5, groups)
    if half not in depths.values():
        depths["half of the groups"] = half
    rows = {f"finetune: {name} ({d} of {groups})": d for name, d in depths.items()}
    batch = one_batch(training, batch_size=options.batch_size, device=options.device)
    module = training.module.to(options.device)
    pixels = normalise(batch["image"], mean=module.mean, std=module.std).contiguous()
    tutorial = partial(tutorial_step, backbone, batch, pixels, len(training.manifest.classes))
    makers: dict[str, Callable[[], Step]] = {TUTORIAL: tutorial}
    for name, depth in rows.items():
        makers[name] = lambda depth=depth: finetune_step(build(), folder, batch, depth=depth)
    return {"training": training, "depths": rows, "makers": makers}


def ready(make: Callable[[], Step], device: str) -> Contender:
    """Return a step after one that is not timed."""
    before = _allocated(device)
    step = make()
    step()
    synchronize(device)
    gc.collect()
    return Contender(step, _allocated(device) - before)


def measure(contender: Contender, options: Namespace) -> Cost:
    """Return the cost of some steps, per image."""
    before = _allocated(options.device)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize(options.device)
    start = time.perf_counter()
    for _ in range(options.steps):
        contender.step()
    synchronize(options.device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    ms = 1000 * seconds / options.steps / options.batch_size
    return Cost(ms, contender.held_bytes + max(0, peak - before))


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def with_recipe(
    costs: dict[str, list[Cost]], training: Training, depths: dict[str, int]
) -> dict[str, list[Cost]]:
    """Return the costs with the mean over the epochs of the default recipe, round by round."""
    name_of = {depth: name for name, depth in depths.items()}
    epochs = sum(phase.last_epoch - phase.first_epoch + 1 for phase in training.phases)
    mean = [0.0] * len(costs[TUTORIAL])
    for phase in training.phases:
        share = (phase.last_epoch - phase.first_epoch + 1) / epochs
        for index, cost in enumerate(costs[name_of[phase.depth]]):
            mean[index] += share * cost.ms
    return {**costs, RECIPE: [Cost(value) for value in mean]}


def print_costs(costs: dict[str, list[Cost]]) -> None:
    """Print a row for each contender."""
    peaks = any(cost.peak_bytes for rows in costs.values() for cost in rows)
    head = f"{'ms per image':38} {'median':>8} {'min':>8} {'max':>8}  {'times faster':18}"
    print(head + (" peak MiB" if peaks else ""))
    first = [cost.ms for cost in costs[TUTORIAL]]
    for name, rows in costs.items():
        ms = [cost.ms for cost in rows]
        line = f"{name:38} {statistics.median(ms):8.3f} {min(ms):8.3f} {max(ms):8.3f} "
        line += f" {spread(ratios(first, ms)):18}"
        if peaks and name != RECIPE:
            line += f" {max(cost.peak_bytes for cost in rows) / MIB:8.0f}"
        print(line.rstrip())


def run_backbone(backbone: str, folder: Path, options: Namespace) -> dict[str, Any]:
    """Time and print the steps of one backbone."""
    built = contenders_of(backbone, folder, options)
    training: Training = built["training"]
    precision = training.config.trainer.precision
    side = training.network.spec.input_size[-1]
    how = "as auto chooses here" if options.precision == "auto" else "as asked for"
    print(f"\n=== {backbone}, {side} px, batch {options.batch_size}: {precision}, {how}")
    made = {name: ready(make, options.device) for name, make in built["makers"].items()}
    turns = {name: partial(measure, item, options) for name, item in made.items()}
    costs = with_recipe(take_turns(turns, options.rounds), training, built["depths"])
    print_costs(costs)
    return {
        "backbone": backbone,
        "precision": precision,
        "image_size": side,
        "costs": {name: [asdict(cost) for cost in rows] for name, rows in costs.items()},
    }


def parse_options() -> Namespace:
    """Return the command's options."""
    parser = new_parser(__doc__)
    parser.add_argument("--backbones", default="resnet18", help="timm names, by comma")
    parser.add_argument("--batch-size", type=int, help="default 16, on a GPU 128")
    parser.add_argument("--image-size", type=int, help="default: what the backbone expects")
    parser.add_argument("--steps", type=int, help="in each turn; default 1, on a GPU 20")
    options = parser.parse_args()
    options.device = chosen_device(options.device)
    if options.quick:
        set_missing(options, {"batch_size": 4, "image_size": 96, "rounds": 2, "steps": 1})
    if options.device != "cpu":
        set_missing(options, {"batch_size": 128, "steps": 20})
    set_missing(options, {"batch_size": 16, "rounds": 7, "steps": 1})
    return options


def main() -> None:
    """Time the steps of every backbone."""
    options = parse_options()
    found = environment(options)
    print_environment(found)
    report: dict[str, Any] = {"environment": found, "runs": []}
    with work_folder() as folder:
        make_images(folder / "images", IMAGE_SIZE, count=IMAGES)
        for backbone in options.backbones.split(","):
            report["runs"].append(run_backbone(backbone, folder, options))
            gc.collect()
    if options.precision == "auto" and "32-true" in {run["precision"] for run in report["runs"]}:
        print("\nNo fast bf16 here; --precision bf16-mixed measures it nevertheless.")
    write_json(options.json, report)


if __name__ == "__main__":
    main()
