"""Files of a run folder for its report; what is missing or damaged is left out."""

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from finetune.audit.report import parse_audit
from finetune.data.manifest import Manifest
from finetune.data.training_data import group_samples
from finetune.report.run_facts import Row, SplitPredictions
from finetune.system.run_folder import RunFolder
from finetune.types import Sample, Split

_LOGGER = logging.getLogger(__name__)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Return the rows of ``metrics.csv``; none if the file is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return tuple(
                {name: float(value) for name, value in row.items() if value not in ("", None)}
                for row in csv.DictReader(stream)
            )
    except (OSError, ValueError, TypeError) as error:
        _skip(path, error)
        return ()


def read_json(path: Path) -> Any | None:
    """Return the content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _skip(path, error)
        return None


def read_audit(run: RunFolder) -> dict[str, Any] | None:
    """Return the audit with the present names of its keys; None if there is none to read."""
    try:
        return parse_audit(run.audit_json_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _skip(run.audit_json_path, error)
        return None


def read_rejected(run: RunFolder) -> tuple[tuple[str, str], ...]:
    """Return path and reason of each file that was left out."""
    try:
        with run.rejected_path.open(encoding="utf-8", newline="") as stream:
            return tuple((row["path"], row["reason"]) for row in csv.DictReader(stream))
    except (OSError, KeyError) as error:
        _skip(run.rejected_path, error)
        return ()


def read_split_predictions(path: Path, manifest: Manifest, split: Split) -> SplitPredictions | None:
    """Return the predictions of a split from a file of probabilities; None if there are none."""
    samples = manifest.get_samples(split)
    if not path.is_file() or not samples:
        return None
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            probabilities = np.asarray(stored["probabilities"], np.float64)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        _skip(path, error)
        return None
    if probabilities.shape != (len(samples), len(manifest.classes)):
        _skip(path, f"shape {probabilities.shape}")
        return None
    return build_predictions(manifest, samples, probabilities)


def read_out_of_fold(run: RunFolder, manifest: Manifest) -> SplitPredictions | None:
    """Return the predictions of each image by the fold that holds it out; None without any.

    Multi-label images have thresholds that the images of other folds chose.
    """
    by_path = {sample.path: sample for sample in manifest.samples}
    try:
        with run.out_of_fold_path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        samples = [by_path[row["path"]] for row in rows]
        probabilities = [[float(row[f"p {name}"]) for name in manifest.classes] for row in rows]
        folds = np.array([int(row["fold"]) for row in rows], np.int64)
    except (OSError, KeyError, ValueError) as error:
        _skip(run.out_of_fold_path, error)
        return None
    if not samples:
        return None
    found = build_predictions(manifest, samples, np.asarray(probabilities))
    return replace(found, thresholds=_choose_thresholds(found, folds))


def _choose_thresholds(
    predictions: SplitPredictions, folds_N: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Return the thresholds that other folds chose, (N, K); None for one class of each image."""
    if predictions.target.ndim == 1 or len(np.unique(folds_N)) < 2:
        return None
    import torch  # reading files needs no torch otherwise

    from finetune.evaluation.multi_label.label_folds import choose_fold_thresholds

    table, target = map(torch.from_numpy, (predictions.probabilities, predictions.target))
    return choose_fold_thresholds(table, target, folds_N)


def build_predictions(
    manifest: Manifest, samples: list[Sample], probabilities: Any
) -> SplitPredictions:
    """Return predictions of samples, with probabilities of shape (N, K)."""
    return SplitPredictions(
        [sample.path for sample in samples],
        [sample.digest for sample in samples],
        group_samples(samples),
        manifest.encode_targets(samples),
        np.asarray(probabilities, np.float64),
    )


def _skip(path: Path, reason: object) -> None:
    _LOGGER.debug("left out of the report: %s (%s)", path, reason)
