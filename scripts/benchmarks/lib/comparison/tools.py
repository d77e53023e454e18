"""Tools that are compared: how each is run, and what is read from its output."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from scripts.benchmarks.lib.comparison.image_folders import (
    DrawnImages,
    link_images,
    split_validation,
)
from scripts.benchmarks.lib.comparison.processes import Usage, run_process
from scripts.benchmarks.lib.comparison.study import Study, Weights

ROOT = Path(__file__).parents[4]
PEERS = Path(__file__).parents[2] / "peers"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
SELECTING = "selecting"
"""Folder with a validation set, for peers that select their epoch by it."""

ALL = "all"
"""Folder of all training images, for tools that draw their own validation set, or need none."""


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        script: Peer's script; None: finetune.
        arguments: Its further arguments.
        images: The folder that it is given: ``ALL`` or ``SELECTING``.
    """

    script: str | None
    arguments: tuple[str, ...] = ()
    images: Literal["all", "selecting"] = "all"


TOOLS = {
    "finetune": Tool(None),
    "finetune-probe": Tool(None, ("--unfreeze", "linear_probe")),
    "fastai-4": Tool("fastai_.py", ("--epochs", "4")),
    "fastai-8": Tool("fastai_.py", ("--epochs", "8")),
    "timm": Tool("timm_loop.py"),
    "hf": Tool("hf_trainer.py", images="selecting"),
    "tutorial": Tool("tutorial.py", images="selecting"),
    "tutorial-frozen": Tool("tutorial.py", ("--frozen",), images="selecting"),
}


@dataclass(frozen=True)
class Run:
    """One run of a tool.

    Attributes:
        tool: Name in ``TOOLS``.
        seed: Seed of the tool; that of the images is the same.
        weights: Weights that it starts from.
        study: Settings of all runs.
        source: Checkout of finetune that is run; None: the installed one.
    """

    tool: str
    seed: int
    weights: Weights
    study: Study
    source: Path | None = None

    @property
    def is_finetune(self) -> bool:
        """Whether the tool is finetune."""
        return TOOLS[self.tool].script is None


def link_case(drawn: DrawnImages, folder: Path, *, seed: int) -> None:
    """Create the folders ``ALL`` and ``SELECTING`` of a case."""
    link_images({"train": drawn.train, "test": drawn.test}, folder / ALL)
    train, val = split_validation(drawn.train, seed=seed)
    link_images({"train": train, "val": val, "test": drawn.test}, folder / SELECTING)


def run_tool(run: Run, images: Path, folder: Path) -> tuple[dict[str, Any], Usage]:
    """Return the test metrics of a run, with further findings of finetune, and its resources.

    Args:
        run: The run.
        images: Folder with ``ALL`` and ``SELECTING``.
        folder: New folder for caches and outputs, which are empty at the start.

    Raises:
        ToolError: If the tool fails.
    """
    folder.mkdir(parents=True)
    data = images / TOOLS[run.tool].images
    command = _build_finetune(run, data, folder) if run.is_finetune else _build_peer(
        run, data, folder
    )  # fmt: skip
    env = {"FINETUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    if run.source is not None:
        env["PYTHONPATH"] = str(run.source.resolve())
    output, usage = run_process(command, folder=folder, env=env)
    if run.is_finetune:
        return read_finetune(json.loads(output), folder / "run"), usage
    predicted = json.loads((folder / "predicted.json").read_text())
    return {"test": score_predictions(predicted)}, usage


def read_version(source: Path | None) -> str:
    """Return the commit of a checkout, with ``+`` if files were changed since."""
    command = ["git", "-C", str(source or ROOT), "describe", "--always", "--dirty=+"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return process.stdout.strip() or "unknown"


def read_finetune(report: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return metrics, epochs and choices of a run of finetune.

    Args:
        report: Its JSON output.
        run_dir: Its run folder.
    """
    choices = report["plan"].get("recipe", [])
    return {
        **{
            split: {name: values[name] for name in METRICS}
            for split, values in report["metrics"].items()
            if values
        },
        "epochs": _read_epochs(run_dir / "metrics.csv"),
        "recipe": {choice["key"]: choice["value"] for choice in choices},
    }


def score_predictions(predicted: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of predicted classes.

    Args:
        predicted: Path below the test folder, which begins with the class, to predicted class.
    """
    labels = [path.partition("/")[0] for path in predicted]
    predictions = list(predicted.values())
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro")),
    }


def _build_finetune(run: Run, data: Path, folder: Path) -> list[object]:
    """Return the command of a run of finetune with its defaults."""
    weights, study = run.weights, run.study
    model = {"kwargs": weights.kwargs, "pretrained_cfg": weights.pretrained_cfg}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {k: v for k, v in model.items() if v}}))
    command: list[object] = [sys.executable, "-m", "finetune", "fit", data, "--config", config]
    command += ["--backbone", weights.backbone, "--weights", weights.file.resolve()]
    command += ["--seed", run.seed, "--output", folder / "run", "--json"]
    command += TOOLS[run.tool].arguments
    if study.image_size is not None:
        command += ["--image-size", study.image_size]
    if study.epochs is not None and run.tool == "finetune":
        command += ["--epochs", study.epochs]
    return [*command, *study.settings]


def _build_peer(run: Run, data: Path, folder: Path) -> list[object]:
    tool, weights, study = TOOLS[run.tool], run.weights, run.study
    assert tool.script is not None
    command: list[object] = [sys.executable, PEERS / tool.script, data, "--backbone"]
    command += [weights.backbone, "--weights", weights.file.resolve(), "--seed", run.seed]
    command += ["--output", folder / "predicted.json", *tool.arguments]
    for option, value in (("--kwargs", weights.kwargs), ("--cfg", weights.pretrained_cfg)):
        if value:
            command += [option, json.dumps(value)]
    if study.image_size is not None:
        command += ["--image-size", study.image_size]
    if study.epochs is not None:  # the last one counts
        command += ["--epochs", study.epochs]
    return command


def _read_epochs(file: Path) -> list[dict[str, float]]:
    """Return epoch, training loss and validation metrics of each row of metrics.csv."""
    with file.open(newline="", encoding="utf-8") as rows:
        return [
            {
                name: round(float(value), 6)
                for name, value in row.items()
                if value and (name in ("epoch", "train/loss") or name.startswith("val/"))
            }
            for row in csv.DictReader(rows)
        ]
