"""Images per second of finetune's training epochs, compared with a plain loop on the same data.

    uv run python scripts/benchmarks/end_to_end.py [--overhead]

"fit" is ``finetune.fit`` through its public API. "plain" is the same training as a plain PyTorch
loop (lib/plain_loop.py): the same images through finetune's loader, the same network, memory
format, precision, loss, clipping and schedule, torch's fused AdamW, and validation on the same
images; it writes no checkpoints. "synthetic" is the plain loop on a batch that is already on the
device: the upper bound given by the network. The loops alternate epoch by epoch in one process; the
first epoch of each is excluded. Rates are training images divided by the duration of the whole
epoch, including validation. Ratios are within a round: median, minimum and maximum.

--overhead uses a network and images so small that the overhead of the loop becomes visible, on one
thread, and prints the parts of an epoch and of a step (lib/overhead.py).
"""

import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import finetune
from finetune.builders import Training
from finetune.config.schema import Config
from finetune.types import Reporter
from scripts.benchmarks.lib.overhead import run_overhead
from scripts.benchmarks.lib.plain_loop import (
    create_file_loaders,
    create_synthetic_loaders,
    iter_plain_steps,
)
from scripts.benchmarks.lib.rounds import (
    compute_ratios,
    format_spread,
    print_environment,
    set_missing,
    write_json,
)
from scripts.benchmarks.lib.stopwatch import EpochTurns, Stopwatch
from scripts.benchmarks.lib.training_setup import (
    create_config,
    create_parser,
    create_training,
    create_work_folder,
    describe_environment,
    make_images,
    resolve_device,
)

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
WITHOUT_CHECKPOINTS = "fit, without checkpoints"


def build_assignments(options: Namespace, folder: Path) -> dict[str, Any]:
    """Return the config keys of all contenders."""
    return {
        "data.path": str(folder / "images"),
        "data.image_size": options.image_size,
        "data.cache": options.cache,
        "data.num_workers": "auto" if options.num_workers is None else options.num_workers,
        "model.backbone": options.backbone,
        # as "auto" chooses for pretrained weights; time does not depend on the weights
        "model.weights": "random",
        "model.batch_norm": "frozen",
        "unfreeze.name": options.unfreeze,
        "trainer.epochs": options.rounds + 1,  # the first epoch is excluded
        "trainer.batch_size": options.batch_size,
        "trainer.precision": options.precision,
        "trainer.accelerator": options.device,
        "tracking.wandb": "off",
    }


def run_fit(config: Config, folder: Path, watch: Reporter) -> None:
    """Run ``finetune.fit`` with a reporter."""
    number = len(list(folder.glob("run-*")))
    run_config = config.model_copy(update={"output": str(folder / f"run-{number}")})
    finetune.fit(run_config, reporter=watch)


def run_epochs(config: Config, fit: Callable[[Reporter], None]) -> dict[str, Any]:
    """Time whole epochs of the three contenders and print the table."""
    watches = {"plain": Stopwatch(), "synthetic": Stopwatch()}
    makers = {"plain": create_file_loaders, "synthetic": create_synthetic_loaders}
    others = {}
    for name, make in makers.items():
        training = create_training(config)
        others[name] = iter_plain_steps(training, make(training), watch=watches[name])
    turns = EpochTurns(others)
    fit(turns)
    images = training.steps_per_epoch * training.batch_size
    rates = {
        "fit": [images / epoch.whole_seconds for epoch in turns.warm],
        WITHOUT_CHECKPOINTS: [images / epoch.seconds for epoch in turns.warm],
        **{name: [images / epoch.seconds for epoch in w.warm] for name, w in watches.items()},
    }
    print_rates(training, images, rates)
    return {"images_per_epoch": images, "images_per_second": rates}


def print_rates(training: Training, images: int, rates: dict[str, list[float]]) -> None:
    """Print a row per contender."""
    config = training.config
    print(
        f"\n{config.model.backbone}, {config.data.image_size} px, batch {training.batch_size}, "
        f"{config.trainer.precision}, unfreeze {config.unfreeze.name}, cache {config.data.cache}, "
        f"{config.data.num_workers} workers\n{images} training images per epoch"
    )
    head = f"{'images per second':28} {'median':>8} {'min':>8} {'max':>8}"
    print(f"{head}  {'over plain':18} over synthetic")
    for name, values in rates.items():
        line = f"{name:28} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}"
        over = [
            format_spread(compute_ratios(values, rates[other])) for other in ("plain", "synthetic")
        ]
        print(f"{line}  {over[0]:18} {over[1]}")


def parse_options() -> Namespace:
    """Return the options, from the command line or the defaults of the part."""
    parser = create_parser(__doc__)
    parser.add_argument(
        "--overhead", action="store_true", help="measure the overhead of the loop instead"
    )
    parser.add_argument("--backbone", help="default resnet18, on a GPU resnet50")
    parser.add_argument("--image-size", type=int, help="default 96, on a GPU 224")
    parser.add_argument(
        "--images", type=int, help="default 320, on a GPU 8192; 20%% are for validation"
    )
    parser.add_argument("--jpeg", help="width x height of the files; default 320x240 or 1024x768")
    parser.add_argument("--batch-size", type=int, help="default 32, on a GPU 256")
    parser.add_argument("--unfreeze", default="all", help="as unfreeze.name")
    parser.add_argument("--cache", default="auto", help="as data.cache; its folder is temporary")
    parser.add_argument("--num-workers", type=int, help="as data.num_workers; default auto")
    parser.set_defaults(precision=None)
    options = parser.parse_args()
    options.device = resolve_device(options.device)
    parts = ["overhead"] if options.overhead else []
    parts = ["quick"] * options.quick + parts + ["cuda"] * (options.device == "cuda") + ["cpu"]
    for part in parts:
        set_missing(options, DEFAULTS[part])
    set_missing(options, {"precision": "auto"})
    return options


def main() -> None:
    """Write the images and run the selected part."""
    options = parse_options()
    environment = describe_environment(options)
    print_environment(environment)
    width, height = map(int, options.jpeg.split("x"))
    with create_work_folder() as folder:
        make_images(folder / "images", (width, height), count=options.images)
        config = create_config(build_assignments(options, folder))
        run_part = run_overhead if options.overhead else run_epochs
        results = run_part(config, partial(run_fit, config, folder))
    write_json(options.json, {"environment": environment, **results})


if __name__ == "__main__":
    main()
