"""Images per second of finetune's training epochs, against a plain loop on the same data.

    uv run python scripts/benchmarks/end_to_end.py [--overhead]

"fit" is ``finetune.fit`` through its public API. "plain" is the same training written out in
PyTorch (plain_loop.py): the same images through finetune's own loader, the same network, layout,
precision, loss, clipping and schedule, torch's fused AdamW, and validation on the same images; it
writes no checkpoints. "synthetic" is the plain loop on a batch that is on the device already: what
the network alone allows. They take turns epoch by epoch in one process; each one's first epoch is
not counted. Figures are training images over the whole epoch's seconds, validation included. Ratios
are within a round: the median, the least and the most.

--overhead takes a network and images so small that the cost of the loop itself shows, on one
thread, and says where the time of an epoch and of a step goes (overhead.py).
"""

import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from overhead import run_overhead
from plain_loop import file_loaders, plain_steps, synthetic_loaders
from rounds import print_environment, ratios, set_missing, spread, write_json
from trainings import (
    chosen_device,
    config_of,
    environment,
    make_images,
    new_parser,
    training_of,
    work_folder,
)
from watches import EpochTurns, Stopwatch

import finetune
from finetune.builders import Training
from finetune.config.schema import Config
from finetune.types import Reporter

DEFAULTS: dict[str, dict[str, Any]] = {
    "quick": {
        "backbone": "test_resnet",
        "image_size": 32,
        "images": 80,
        "jpeg": "64x64",
        "batch_size": 8,
        "rounds": 2,
    },
    "overhead": {
        "backbone": "test_resnet",
        "image_size": 32,
        "images": 400,
        "jpeg": "64x64",
        "batch_size": 2,
        "rounds": 3,
        "threads": 1,
        "num_workers": 0,
    },
    "cuda": {
        "backbone": "resnet50",
        "image_size": 224,
        "images": 8192,
        "jpeg": "1024x768",
        "batch_size": 256,
        "precision": "bf16-mixed",
        "rounds": 6,
    },
    "cpu": {
        "backbone": "resnet18",
        "image_size": 96,
        "images": 320,
        "jpeg": "320x240",
        "batch_size": 32,
        "rounds": 5,
    },
}
CHECKPOINTS = "fit, checkpoints left out"


def assignments(options: Namespace, folder: Path) -> dict[str, Any]:
    """Return the config of every contender: the one place to try a setting."""
    return {
        "data.path": str(folder / "images"),
        "data.image_size": options.image_size,
        "data.cache": options.cache,
        "data.num_workers": "auto" if options.num_workers is None else options.num_workers,
        "model.backbone": options.backbone,
        # what "auto" chooses for pretrained weights, which are not needed to measure time
        "model.weights": "random",
        "model.batch_norm": "frozen",
        "unfreeze.name": options.unfreeze,
        "trainer.epochs": options.rounds + 1,  # the first is not counted
        "trainer.batch_size": options.batch_size,
        "trainer.precision": options.precision,
        "trainer.accelerator": options.device,
        "tracking.wandb": "off",
    }


def run_fit(config: Config, folder: Path, watch: Reporter) -> None:
    """Run ``finetune.fit`` with a reporter."""
    number = len(list(folder.glob("run-*")))
    changed = config.model_copy(update={"output": str(folder / f"run-{number}")})
    finetune.fit(changed, reporter=watch)


def run_epochs(config: Config, fit: Callable[[Reporter], None]) -> dict[str, Any]:
    """Time and print whole epochs of the three contenders."""
    watches = {"plain": Stopwatch(), "synthetic": Stopwatch()}
    makers = {"plain": file_loaders, "synthetic": synthetic_loaders}
    others = {}
    for name, make in makers.items():
        training = training_of(config)
        others[name] = plain_steps(training, make(training), watch=watches[name])
    turns = EpochTurns(others)
    fit(turns)
    images = training.steps_per_epoch * training.batch_size
    rates = {
        "fit": [images / epoch.whole_seconds for epoch in turns.warm],
        CHECKPOINTS: [images / epoch.seconds for epoch in turns.warm],
        **{name: [images / epoch.seconds for epoch in w.warm] for name, w in watches.items()},
    }
    print_rates(training, images, rates)
    return {"images_per_epoch": images, "images_per_second": rates}


def print_rates(training: Training, images: int, rates: dict[str, list[float]]) -> None:
    """Print a row for each contender, and what the loop costs."""
    config = training.config
    print(
        f"\n{config.model.backbone}, {config.data.image_size} px, batch {training.batch_size}, "
        f"{config.trainer.precision}, unfreeze {config.unfreeze.name}, cache {config.data.cache}, "
        f"{config.data.num_workers} workers\n{images} training images an epoch"
    )
    head = f"{'images per second':28} {'median':>8} {'min':>8} {'max':>8}"
    print(f"{head}  {'over plain':18} over synthetic")
    for name, values in rates.items():
        line = f"{name:28} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}"
        over = [spread(ratios(values, rates[other])) for other in ("plain", "synthetic")]
        print(f"{line}  {over[0]:18} {over[1]}")


def parse_options() -> Namespace:
    """Return the command's options, each from the command line or the defaults of the part."""
    parser = new_parser(__doc__)
    parser.add_argument("--overhead", action="store_true", help="the loop's own cost, instead")
    parser.add_argument("--backbone", help="default resnet18, on a GPU resnet50")
    parser.add_argument("--image-size", type=int, help="default 96, on a GPU 224")
    parser.add_argument("--images", type=int, help="default 320, on a GPU 8192; a fifth validates")
    parser.add_argument("--jpeg", help="width x height of the files; default 320x240 or 1024x768")
    parser.add_argument("--batch-size", type=int, help="default 32, on a GPU 256")
    parser.add_argument("--unfreeze", default="all", help="as unfreeze.name")
    parser.add_argument("--cache", default="auto", help="as data.cache; its folder is temporary")
    parser.add_argument("--num-workers", type=int, help="as data.num_workers; default auto")
    parser.set_defaults(precision=None)
    options = parser.parse_args()
    options.device = chosen_device(options.device)
    parts = ["overhead"] if options.overhead else []
    parts = ["quick"] * options.quick + parts + ["cuda"] * (options.device == "cuda") + ["cpu"]
    for part in parts:
        set_missing(options, DEFAULTS[part])
    set_missing(options, {"precision": "auto"})
    return options


def main() -> None:
    """Make the images and run the part that was asked for."""
    options = parse_options()
    found = environment(options)
    print_environment(found)
    width, height = map(int, options.jpeg.split("x"))
    with work_folder() as folder:
        make_images(folder / "images", (width, height), count=options.images)
        config = config_of(assignments(options, folder))
        run_part = run_overhead if options.overhead else run_epochs
        figures = run_part(config, partial(run_fit, config, folder))
    write_json(options.json, {"environment": found, **figures})


if __name__ == "__main__":
    main()
