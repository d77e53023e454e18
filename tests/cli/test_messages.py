"""Snapshot of what the commands print, for review: ``messages.md`` beside this file.

``UPDATE_MESSAGES=1 pytest tests/cli/test_messages.py`` rewrites the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from finetune.errors import OutOfMemoryError
from tests.cli.conftest import Cli
from tests.support.runs import write_weights

SNAPSHOT = Path(__file__).with_name("messages.md")
INTRODUCTION = """# Messages

What the commands print at 80 columns, written by
`UPDATE_MESSAGES=1 pytest tests/cli/test_messages.py`. Review the difference before it is committed.
Paths, dates, durations, losses and probabilities are replaced by placeholders; costs are fixed.
"""
PLACEHOLDER_DIR = "/tmp/finetune-messages"
"""Replacement of the working folder, of the same length so that lines wrap alike."""

SMALL_CONFIG = """
data: {image_size: 32, num_workers: 0}
model: {backbone: test_resnet, weights: weights.pth}
trainer: {precision: 32-true, accelerator: cpu}
"""
COST = {
    "memory_gb": {
        "parameters": 0.0019, "gradients": 0.0019, "optimizer": 0.0037, "activations": 0.0105,
        "total": 0.018, "free": 21.4,
    },
    "micro_batch_size": 8,
    "phases": [{"first_epoch": 1, "last_epoch": 2, "images_per_second": 812.0, "seconds": 95.0}],
    "cache_fill_seconds": 2.0,
    "seconds": 97.0,
}  # fmt: skip

Commands = Mapping[str, str]
"""Title to command line, without the name of the program."""

SMALL = "--config small.yaml"
SHORT = f"{SMALL} --epochs 2 --batch-size 8"
PROBE = f"{SMALL} --unfreeze linear_probe"
COMMANDS = (
    "fit", "inspect", "compare", "tune", "submit", "evaluate", "predict", "export", "push", "fetch",
    "demo", "config",
)  # fmt: skip
HELP: Commands = {"finetune": "--help"} | {name: f"{name} --help" for name in COMMANDS}
OUTPUT: Commands = {
    "fit, dry run": f"fit photos {SHORT} --dry-run",
    "fit": f"fit photos {SHORT} --output runs/a",
    "fit, linear probe": f"fit photos {PROBE} --output runs/probe",
    "fit, resume a complete run": "fit --resume runs/a",
    "fit, resume with more epochs": "fit --resume runs/a --epochs 3 --dry-run",
    "fit, leaked images": f"fit leaky {PROBE} --output runs/leaky",
    "inspect": "inspect leaky",
    "evaluate": "evaluate runs/a",
    "evaluate, uniform prior and training images": "evaluate runs/a --split train --prior uniform",
    "evaluate, leaked images": "evaluate runs/leaky",
    "evaluate, images that have moved, with other labels and files": "evaluate runs/a moved",
    "predict to a file": "predict runs/a photos/val/red --output predictions.csv",
    "predict to standard output": "predict runs/a photos/val/red/0.png --top-k 2",
    "predict, unreadable files": "predict runs/a mixed --output predictions.csv",
    "export": "export runs/a --output model",
    "export without images": "export runs/a/bundle --output other",
    "compare": "compare photos --backbones test_resnet,test_vit --weights weights --image-size 32 "
    "--precision 32-true trainer.accelerator=cpu data.num_workers=0 --csv backbones.csv",
    "submit": "submit photos --output runs/b --gpus-per-node 2 --time 4:00:00",
}
BAD_INPUT: Commands = {
    "unknown command": "train photos",
    "no data": "fit",
    "two data paths": "fit photos leaky",
    "unknown option": "fit photos --eopchs 3",
    "missing argument": "predict runs/a",
    "value out of range": "predict runs/a photos --top-k 0",
    "several errors in the config": "fit photos --epochs many optim.lrr=1 modle.backbone=a",
    "contradiction": "fit photos --epochs 3 trainer.epochs=4",
    "unknown schedule": f"fit photos {SMALL} --unfreeze gradul",
    "output with resume": "fit --resume runs/a --output runs/b",
    "changed setting with resume": "fit --resume runs/a --lr 0.5",
    "range test of a resumed run": "fit --resume runs/a --lr-find",
    "range test without training": "fit photos --lr-find --dry-run",
    "range test of a linear probe": f"fit photos {PROBE} --lr-find",
    "range test in a job": "submit photos --lr-find",
    "unknown split": "evaluate runs/a --split dev",
    "unknown device": "evaluate runs/a --device tpu",
    "unknown prior": "evaluate runs/a --prior balanced",
    "test-time augmentation without flips": "evaluate runs/none --tta",
    "bundle without data": "evaluate runs/a/bundle",
    "no backbones": "compare photos",
    "key that compare does not use": "compare photos --backbones resnet18 trainer.epochs=3",
    "random weights to compare": "compare photos --backbones resnet18 --weights random",
    "misspelt option of submit": "submit photos --node 2",
    "malformed time limit": "submit photos --time 4h",
    "option that submit has itself": "submit photos --sbatch=--nodes=2",
    "missing data": "fit photo",
    "no class folders": f"fit photos/train/red {SMALL}",
    "class of unreadable images": f"fit broken {SMALL}",
    "missing split": "evaluate runs/a --split test",
    "no images to predict": "predict runs/a notes",
    "unknown backbone": f"fit photos {SMALL} --backbone resnet5O --weights random",
    "missing weights": f"fit photos {SMALL} --weights gone.pth",
    "unknown backbone to fetch": "fetch resnet5O",
    "existing run folder": f"fit photos {SMALL} --output runs/a",
    "resume of a data folder": "fit --resume photos",
    "missing model": "predict gone photos",
    "pickle as a model": "predict weights.pth photos",
    "repository without a user": "push runs/a ants",
    "format that is not pushed": "push runs/a me/ants --format openvino",
    "existing export folder": "export runs/a --output photos",
    "output below a file": f"fit photos {SMALL} --output notes/a.txt/run",
}
RAISED: Mapping[str, BaseException] = {
    "out of memory": OutOfMemoryError("CUDA out of memory. Use a smaller --image-size."),
    "bug": ZeroDivisionError("division by zero"),
    "Ctrl-C": KeyboardInterrupt(),
}
"""Errors that are raised in place of ``fit``."""


@pytest.fixture
def workdir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a folder with images, weights and a stub of sbatch; its path has a fixed length."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="finetune-") as name:
        root = Path(name)
        for folder in ("photos", "leaky"):
            _write_dataset(root / folder)
        (root / "leaky/val/red/0.png").write_bytes((root / "leaky/train/red/0.png").read_bytes())
        for file in ("broken/train/red/0.png", "broken/train/blue/0.png", "mixed/broken.png"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(b"no image")
        shutil.copytree(root / "photos", root / "moved")
        (root / "moved/val/red/0.png").rename(root / "moved/val/blue/was red.png")
        (root / "moved/val/red/1.png").unlink()
        Image.new("RGB", (32, 32), "red").save(root / "moved/val/red/new.png")
        (root / "mixed" / "0.png").write_bytes((root / "photos/val/red/0.png").read_bytes())
        (root / "notes").mkdir()
        (root / "notes" / "a.txt").write_text("no image")
        (root / "small.yaml").write_text(SMALL_CONFIG)
        write_weights(root / "weights.pth")
        (root / "weights").mkdir()
        write_weights(root / "weights" / "test_resnet.pth")
        write_weights(root / "weights" / "test_vit.pth", "test_vit")
        (root / "bin").mkdir()
        (root / "bin" / "sbatch").write_text("#!/bin/sh\necho 17\n")
        (root / "bin" / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", str(root / "bin"), prepend=os.pathsep)
        monkeypatch.setenv("FINETUNE_CACHE", str(root / "cache"))
        monkeypatch.chdir(root)
        yield root


@pytest.fixture(autouse=True)
def _fixed_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what differs between machines."""
    compare = "finetune.commands.compare.compare"
    monkeypatch.setattr("finetune.commands.fit.prepare.describe_cost", lambda *_: COST)
    monkeypatch.setattr(f"{compare}.measure_throughput", lambda *_, **__: 1234.5)
    monkeypatch.setattr(f"{compare}.measure_full_finetuning_bytes", lambda *_: 23_000_000)
    monkeypatch.setenv("COLUMNS", "80")


def test_messages_equal_reviewed_snapshot(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys)
    cli.ok(*shlex.split(f"fit photos {PROBE} --augment none --output runs/none"))
    sections = [INTRODUCTION]
    for title, commands in (("Help", HELP), ("Output", OUTPUT), ("Bad input", BAD_INPUT)):
        sections.append(f"## {title}\n")
        sections += [_run(cli, name, line, workdir) for name, line in commands.items()]
    sections.append("## Other errors\n")
    for name, error in RAISED.items():
        with _raise_in_fit(monkeypatch, error):
            sections.append(_run(cli, name, "fit photos", workdir))
    text = "\n".join(sections)
    if os.environ.get("UPDATE_MESSAGES"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8"), "review it: UPDATE_MESSAGES=1 pytest …"


def _run(cli: Cli, title: str, line: str, workdir: Path) -> str:
    """Return a heading and a fenced block with the output of a command line."""
    with contextlib.redirect_stderr(sys.stdout):  # in the order of a terminal
        output = cli(*shlex.split(line))
    lines = [f"$ finetune {line}", *(text.rstrip() for text in output.out.splitlines())]
    code = f" (exit code {output.code})" if output.code else ""
    block = _normalize("\n".join(lines), workdir)
    return f"### {title}{code}\n\n```console\n{block}\n```\n"


def _normalize(text: str, workdir: Path) -> str:
    """Replace paths, dates, durations and numbers that differ between machines."""
    text = text.replace(str(workdir), PLACEHOLDER_DIR)
    text = re.sub(r"\b\d{8}-\d{6}\b", "YYYYMMDD-HHMMSS", text)
    text = re.sub(r"(?m)^(loss +)\d+\.\d{4}$", r"\1#.####", text)
    text = re.sub(r"(?m)^( +\d+) +\d+\.\d{4} +\d+\.\d{4} +\d+\.\d{4}( .*%) +\d+\.\d$",
                  r"\1      #.####    #.####     #.####\2      #.#", text)  # fmt: skip
    text = re.sub(r"\b\d\.\d{4} at\b", "#.#### at", text)
    # where the line breaks depends on how long the numbers are
    text = re.sub(r"Learning rate \S+\s+a\s+step\s+of\s+\S+\s+changes[^.]*?\d+%[^.]*\.\n",
                  "Learning rate #: a step of # changes the features by #% …\n", text)  # fmt: skip
    text = re.sub(r"(?<=optim\.lr is )\S+", "#", text)
    text = re.sub(r"(?m)\d\.\S+ … \d\.\S+(?= +frozen$)", "# … #", text)
    text = re.sub(r"\b0\.\d{6}\b", "0.######", text)
    text = re.sub(r"\bdiffer by at most [\d.e-]+", "differ by at most #", text)
    return re.sub(r"(?<=[ (])\d+(\.\d)? s\b", "# s", text)


@contextlib.contextmanager
def _raise_in_fit(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Iterator[None]:
    with monkeypatch.context() as patch:
        # no function of this file, which would count as code of the user
        patch.setattr("finetune.commands.fit.fit.fit", mock.Mock(side_effect=error))
        yield


def _write_dataset(root: Path) -> None:
    """Write train and val folders of two colors under noise, which any classifier separates."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, color in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                # coarse patches, which differ between the images also at a low resolution
                patches = random.integers(-40, 40, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
                pixels = (patches + color).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
