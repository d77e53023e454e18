"""Time of a training step with a frozen backbone under DDP, compared with plain DDP.

    python scripts/benchmarks/ddp_step.py [--processes 2] [--backbone resnet18] [--batch-size 16]

Both train the head of the same frozen backbone on the same batches in memory, with gloo on the CPU.
The plain loop has no trainer, schedule or metrics. The loops alternate epoch by epoch in the same
processes; the medians of the steps are compared.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from finetune.builders import build_trainer_options, build_training, enable_cache
from finetune.commands.prepare_data import read_data
from finetune.config.load import build_config
from finetune.distributed.launch import detect_launch
from finetune.distributed.rendezvous import Rendezvous
from finetune.models.classifier import normalise
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from finetune.types import Reporter
from scripts.benchmarks.lib.synthetic_photos import estimate_bytes_per_px, make_photos

TIMEOUT = timedelta(minutes=2)


class Turns(Callback):
    """Times the steps of finetune, and runs an epoch of the plain loop after each epoch."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.steps: dict[str, list[float]] = {"finetune": [], "plain": []}
        self._plain: DistributedDataParallel | None = None
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the time between the ends of two steps."""
        now = time.perf_counter()
        if batch_idx:
            self.steps["finetune"].append(now - self._last)
        self._last = now

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Run an epoch of the plain loop."""
        if self._plain is None:
            self._plain = DistributedDataParallel(pl_module.classifier)
        self.steps["plain"] += run_plain_epoch(self._plain, pl_module, self.batches)


def run_plain_epoch(model: DistributedDataParallel, module: Any, batches: list[Any]) -> list[float]:
    """Run a plain epoch and return the seconds of each step but the first."""
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(head, lr=0.0, fused=True)
    model.train()  # type: ignore[no-untyped-call]
    times = []
    for batch in batches:
        pixels = normalise(batch["image"], mean=module.mean, std=module.std, color_matrix=None)
        loss: Tensor = torch.nn.functional.cross_entropy(model(pixels), batch["label"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(head, 1.0)
        optimizer.step()
        times.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def run_rank(arguments: argparse.Namespace) -> None:
    """Train as one rank; rank 0 prints its times as JSON."""
    torch.set_num_threads(1)
    launch = detect_launch()
    assert launch is not None, "started by main"
    config = build_config(
        {
            "data": {
                "path": arguments.photos,
                "num_workers": 0,
                "image_size": arguments.image_size,
            },
            "model": {"backbone": arguments.backbone, "weights": "random", "batch_norm": "frozen"},
            "unfreeze": {"name": "linear_probe"},
            "augment": {"name": "none"},
            "trainer": {
                "epochs": arguments.epochs,
                "batch_size": arguments.batch_size * launch.world_size,
                "accelerator": "cpu",
                "precision": "32-true",
            },
        }
    )
    data = read_data(config, Path(arguments.photos), reporter=Reporter())
    training = enable_cache(build_training(config, data.manifest), reporter=Reporter())
    with (
        Rendezvous(launch, timeout=TIMEOUT) as rendezvous,
        rendezvous.open_process_group(backend="gloo"),
    ):
        turns = Turns([])
        trainer = create_trainer(
            Path(arguments.photos).parent / f"run-{os.getpid()}",
            build_trainer_options(training.config),
            callbacks=[UnfreezeScheduler(), turns],
            loggers=[],
            launch=launch,
        )
        training.datamodule.trainer = trainer
        turns.batches = list(training.datamodule.train_dataloader())
        fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    if launch.rank == 0:
        print(json.dumps(turns.steps))


def start_rank(rank: int, photos: Path, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a process of the group."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": arguments.processes,
        "LOCAL_WORLD_SIZE": arguments.processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": arguments.port,
        "OMP_NUM_THREADS": 1,
    }
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, __file__, *sys.argv[1:], "--photos", str(photos)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Start the processes and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=16, help="images per process")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--num-images", type=int, default=640)
    parser.add_argument("--port", type=int, default=29611)
    parser.add_argument("--photos", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.photos is not None:
        run_rank(arguments)
        return
    with TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        size = (160, 160)
        density = estimate_bytes_per_px(*size)
        make_photos(photos, size, count=arguments.num_images, bytes_per_px=density)
        ranks = [start_rank(rank, photos, arguments) for rank in range(arguments.processes)]
        outputs = [rank.communicate()[0] for rank in ranks]
    times = {name: [1000 * t for t in steps] for name, steps in json.loads(outputs[0]).items()}
    for name, steps in times.items():
        low, middle, high = statistics.quantiles(steps, n=4)
        print(f"{name:>9}: median {middle:.1f} ms per step ({low:.1f} to {high:.1f}), {len(steps)}")
    ratio = statistics.median(times["finetune"]) / statistics.median(times["plain"])
    print(f"    ratio: {ratio:.3f}")


if __name__ == "__main__":
    main()
