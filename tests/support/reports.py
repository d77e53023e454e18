"""Predictions of made runs, for their reports."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.report.run_facts import SplitPredictions
from finetune.system.run_folder import RunFolder
from finetune.types import Split


def write_predictions(run_dir: Path, random: np.random.Generator) -> None:
    """Write probabilities for the held-out images of a run, two thirds of them correct or so."""
    run = RunFolder(run_dir)
    manifest = read_stored_manifest(run, read_stored_config(run))
    for split in (Split.VAL, Split.TEST):
        samples = manifest.get_samples(split)
        target = np.array(manifest.encode_labels(samples), np.int64)
        table = draw_probabilities(target, len(manifest.classes), random)
        np.savez(run.get_predictions_path(split), probabilities=table.astype(np.float32))


def draw_probabilities(
    target: NDArray[np.int64], num_classes: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return random probabilities that favour the true classes, shape (N, K)."""
    logits = random.normal(size=(len(target), num_classes))
    logits[np.arange(len(target)), target] += 1.5
    table: NDArray[np.float64] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return table


def build_predictions(target: Any, probabilities: Any) -> SplitPredictions:
    """Return predictions of independent images."""
    target = np.asarray(target)
    return SplitPredictions(
        [f"{row}.png" for row in range(len(target))],
        [""] * len(target),
        np.arange(len(target)),
        target,
        np.asarray(probabilities, np.float64),
    )
