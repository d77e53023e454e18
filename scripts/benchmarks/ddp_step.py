"""What a training step with a frozen backbone costs under DDP, beside plain DDP of the same head.

    python scripts/benchmarks/ddp_step.py [--processes 2] [--backbone resnet18] [--batch-size 16]

Both train the head of the same frozen backbone on the same batches in memory, over gloo on the
CPU; the plain loop is what its author would write: no trainer, no schedule, no metrics. They take
turns, epoch by epoch, in the same processes, and what is compared is the median step.
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
from made_photos import make_photos, photo_bytes_per_px
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from finetune.builders import build_trainer_options, build_training, enable_cache
from finetune.commands.prepare_data import read_data
from finetune.config.load import build_config
from finetune.distributed.launch import detect_launch
from finetune.distributed.rendezvous import join_rendezvous
from finetune.models.classifier import normalise
from finetune.training.callbacks.freeze_layers import UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from finetune.types import Reporter

TIMEOUT = timedelta(minutes=2)


class Turns(Callback):
    """Times the steps of finetune's epochs, and lets the plain loop have an epoch after each."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.steps: dict[str, list[float]] = {"finetune": [], "plain": []}
        self._plain: DistributedDataParallel | None = None
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time from the end of one step to the end of the next."""
        now = time.perf_counter()
        if batch_idx:
            self.steps["finetune"].append(now - self._last)
        self._last = now

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Run the plain loop's epoch."""
        if self._plain is None:
            self._plain = DistributedDataParallel(pl_module.classifier)
        self.steps["plain"] += plain_epoch(self._plain, pl_module, self.batches)


def plain_epoch(model: DistributedDataParallel, module: Any, batches: list[Any]) -> list[float]:
    """Return the seconds of each step but the first of a plain epoch."""
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(head, lr=0.0, fused=True)
    model.train()
    times = []
    for batch in batches:
        pixels = normalise(batch["image"], mean=module.mean, std=module.std, color_matrix=None)
        loss: Tensor = torch.nn.functional.cross_entropy(model(pixels), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head, 1.0)
        optimizer.step()
        times.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def run_rank(arguments: argparse.Namespace) -> None:
    """Train as one of the processes; rank 0 prints its times as JSON."""
    torch.set_num_threads(1)
    launch = outer_launch()
    assert launch is not None, "started below"
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
    manifest, _ = read_data(config, Path(arguments.photos), reporter=Reporter())
    training = enable_cache(build_training(config, manifest), reporter=Reporter())
    with meeting(launch, timeout=TIMEOUT) as met, met.group(backend="gloo"):
        turns = Turns([])
        trainer = create_trainer(
            Path(arguments.photos).parent / f"run-{os.getpid()}",
            build_trainer_options(training.config),
            callbacks=[Unfreeze(), turns],
            loggers=[],
            launch=launch,
        )
        training.data.trainer = trainer
        turns.batches = list(training.data.train_dataloader())
        fit(trainer, training.module, training.data, checkpoint=None)
    if launch.rank == 0:
        print(json.dumps(turns.steps))


def started(rank: int, photos: Path, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """Return a process of the group."""
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
    words = [sys.executable, __file__, *sys.argv[1:], "--photos", str(photos)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Start the processes, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=16, help="images of a process")
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
        density = photo_bytes_per_px(*size)
        make_photos(photos, size, count=arguments.num_images, bytes_per_px=density)
        ranks = [started(rank, photos, arguments) for rank in range(arguments.processes)]
        out = [rank.communicate()[0] for rank in ranks]
    times = {name: [1000 * t for t in found] for name, found in json.loads(out[0]).items()}
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{name:>9}: median {middle:.1f} ms a step ({low:.1f} to {high:.1f}), {len(found)}")
    ratio = statistics.median(times["finetune"]) / statistics.median(times["plain"])
    print(f"    ratio: {ratio:.3f}")


if __name__ == "__main__":
    main()
