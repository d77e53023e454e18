"""Time of a training step per image: a tutorial's loop, and finetune at several depths.

    uv run python scripts/benchmarks/training_step.py --backbones resnet18,resnet50,googlenet

The tutorial's loop uses float32 and NCHW, trains all layers, keeps BatchNorm in train mode and uses
torch.optim.AdamW with its defaults; its input is a normalised float32 batch. The rows of finetune
use its module, loss, optimizer, clipping and schedule, built by ``finetune.builders`` as for
pretrained weights, with a batch of its loader (uint8 pixels and colour matrices, which the step
converts to the network's input). Lightning's loop is not included: see end_to_end.py --overhead.

Contenders alternate in rounds, after one step that is not timed. "times faster" is the ratio of the
first row to this one in the same round: median, minimum and maximum. The last row is computed from
the others: the mean over the epochs of the default recipe (first the head alone). Weights are
random; BatchNorm's statistics are set to those of one batch, so that activations keep their scale.
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

from finetune.builders import Training
from finetune.models.classifier import normalise
from finetune.training.schedules.unfreeze import resolve_depth
from scripts.benchmarks.lib.rounds import (
    compute_ratios,
    format_spread,
    print_environment,
    run_rounds,
    set_missing,
    write_json,
)
from scripts.benchmarks.lib.steps import (
    Step,
    create_finetune_step,
    create_tutorial_step,
    load_batch,
)
from scripts.benchmarks.lib.training_setup import (
    create_config,
    create_parser,
    create_training,
    create_work_folder,
    describe_environment,
    make_images,
    resolve_device,
    synchronize,
)

ASSIGNMENTS: dict[str, Any] = {
    # as "auto" chooses for pretrained weights; time does not depend on the weights
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
    """Time of a step in milliseconds per image, and peak memory on a GPU in bytes."""

    ms: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Contender:
    """Step with the GPU memory that it holds between steps."""

    step: Step
    held_bytes: int


def create_contenders(backbone: str, folder: Path, options: Namespace) -> dict[str, Any]:
    """Return the training, the depth of each row, and a function that creates each step."""
    assignments = ASSIGNMENTS | {
        "data.path": str(folder / "images"),
        "data.image_size": options.image_size or "auto",
        "model.backbone": backbone,
        "trainer.accelerator": options.device,
        "trainer.precision": options.precision,
    }
    build = partial(create_training, create_config(assignments))
    training = build()
    groups = len(training.module.classifier.groups)
    depths = {"everything": groups, "head only": 1, "last stage and head": 2}
    half = resolve_depth(0.5, groups)
    if half not in depths.values():
        depths["half of the groups"] = half
    rows = {f"finetune: {name} ({d} of {groups})": d for name, d in depths.items()}
    batch = load_batch(training, batch_size=options.batch_size, device=options.device)
    module = training.module.to(options.device)
    pixels = normalise(batch["image"], mean=module.mean, std=module.std).contiguous()
    tutorial = partial(create_tutorial_step, backbone, batch, pixels, len(training.data.classes))

    def make_step(depth: int) -> Step:
        return create_finetune_step(build(), folder, batch, depth=depth)

    makers: dict[str, Callable[[], Step]] = {TUTORIAL: tutorial}
    makers |= {name: partial(make_step, depth) for name, depth in rows.items()}
    return {"training": training, "depths": rows, "makers": makers}


def prepare(make: Callable[[], Step], device: str) -> Contender:
    """Create a step and run it once."""
    before = _get_allocated_bytes(device)
    step = make()
    step()
    synchronize(device)
    gc.collect()
    return Contender(step, _get_allocated_bytes(device) - before)


def measure(contender: Contender, options: Namespace) -> Cost:
    """Return the cost of steps per image."""
    before = _get_allocated_bytes(options.device)
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


def _get_allocated_bytes(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def add_recipe_mean(
    costs: dict[str, list[Cost]], training: Training, depths: dict[str, int]
) -> dict[str, list[Cost]]:
    """Return the costs with the mean over the epochs of the default recipe, round by round."""
    name_of = {depth: name for name, depth in depths.items()}
    epochs = sum(phase.last_epoch - phase.first_epoch + 1 for phase in training.phases)
    mean = [0.0] * len(costs[TUTORIAL])
    for phase in training.phases:
        fraction = (phase.last_epoch - phase.first_epoch + 1) / epochs
        for index, cost in enumerate(costs[name_of[phase.depth]]):
            mean[index] += fraction * cost.ms
    return {**costs, RECIPE: [Cost(value) for value in mean]}


def print_costs(costs: dict[str, list[Cost]]) -> None:
    """Print a row per contender."""
    peaks = any(cost.peak_bytes for rows in costs.values() for cost in rows)
    head = f"{'ms per image':38} {'median':>8} {'min':>8} {'max':>8}  {'times faster':18}"
    print(head + (" peak MiB" if peaks else ""))
    first = [cost.ms for cost in costs[TUTORIAL]]
    for name, rows in costs.items():
        ms = [cost.ms for cost in rows]
        line = f"{name:38} {statistics.median(ms):8.3f} {min(ms):8.3f} {max(ms):8.3f} "
        line += f" {format_spread(compute_ratios(first, ms)):18}"
        if peaks and name != RECIPE:
            line += f" {max(cost.peak_bytes for cost in rows) / MIB:8.0f}"
        print(line.rstrip())


def run_backbone(backbone: str, folder: Path, options: Namespace) -> dict[str, Any]:
    """Time the steps of one backbone and print the table."""
    built = create_contenders(backbone, folder, options)
    training: Training = built["training"]
    precision = training.config.trainer.precision
    side = training.network.spec.input_size[-1]
    how = "chosen by auto" if options.precision == "auto" else "as requested"
    print(f"\n=== {backbone}, {side} px, batch {options.batch_size}: {precision}, {how}")
    steps = {name: prepare(make, options.device) for name, make in built["makers"].items()}
    turns = {name: partial(measure, item, options) for name, item in steps.items()}
    costs = add_recipe_mean(run_rounds(turns, options.rounds), training, built["depths"])
    print_costs(costs)
    return {
        "backbone": backbone,
        "precision": precision,
        "image_size": side,
        "costs": {name: [asdict(cost) for cost in rows] for name, rows in costs.items()},
    }


def parse_options() -> Namespace:
    """Return the options."""
    parser = create_parser(__doc__)
    parser.add_argument("--backbones", default="resnet18", help="timm names, separated by commas")
    parser.add_argument("--batch-size", type=int, help="default 16, on a GPU 128")
    parser.add_argument("--image-size", type=int, help="default: that of the backbone")
    parser.add_argument("--steps", type=int, help="steps per round; default 1, on a GPU 20")
    options = parser.parse_args()
    options.device = resolve_device(options.device)
    if options.quick:
        set_missing(options, {"batch_size": 4, "image_size": 96, "rounds": 2, "steps": 1})
    if options.device != "cpu":
        set_missing(options, {"batch_size": 128, "steps": 20})
    set_missing(options, {"batch_size": 16, "rounds": 7, "steps": 1})
    return options


def main() -> None:
    """Time the steps of each backbone."""
    options = parse_options()
    environment = describe_environment(options)
    print_environment(environment)
    report: dict[str, Any] = {"environment": environment, "runs": []}
    with create_work_folder() as folder:
        make_images(folder / "images", IMAGE_SIZE, count=IMAGES)
        for backbone in options.backbones.split(","):
            report["runs"].append(run_backbone(backbone, folder, options))
            gc.collect()
    if options.precision == "auto" and "32-true" in {run["precision"] for run in report["runs"]}:
        print("\nbf16 is slow on this device; --precision bf16-mixed measures it anyway.")
    write_json(options.json, report)


if __name__ == "__main__":
    main()
