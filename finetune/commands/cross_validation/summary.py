"""Summary of a cross-validation: metrics of its folds with their intervals, as JSON values."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from finetune.bundle.checkpoint_file import load_checkpoint_file
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.bundle.validation_choices import list_validation_choices
from finetune.commands.cross_validation.fold_runs import CrossValidation
from finetune.commands.cross_validation.out_of_fold import OutOfFold
from finetune.commands.measurement.interpolation import INTERPOLATION_KEY
from finetune.commands.measurement.measured import read_measured
from finetune.commands.stored_run import read_stored_config
from finetune.config.resolved import ResolvedConfig
from finetune.evaluation.fold_statistics import (
    LABEL_METHOD,
    METHOD,
    OTHER_FOLDS,
    THRESHOLDS_KEY,
    compute_fold_statistics,
)
from finetune.inference.scoring import AnyEvaluation, details_to_json, metrics_to_json
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.types import Evaluation, Reporter, Split

VERSION = 1
"""Version of ``cross_validation.json``."""


def summarise_folds(
    cross_validation: CrossValidation, out_of_fold: OutOfFold, *, num_label_errors: int
) -> dict[str, Any]:
    """Return the summary of a cross-validation whose folds are complete.

    Args:
        cross_validation: Images and folds.
        out_of_fold: Predictions of the images that folds hold out.
        num_label_errors: Number of labels that are probably wrong: of images of one class the
            number of images; a multi-label image counts once for each of its labels.

    Raises:
        RunFolderError: The bundle of a fold is damaged.
    """
    evaluations: Sequence[AnyEvaluation | None] | None = out_of_fold.evaluate_folds()
    folds = [
        _describe_fold(cross_validation, fold, evaluation)
        for fold, evaluation in enumerate(
            evaluations or [None] * cross_validation.num_folds, start=1
        )
    ]
    fraction = fmean(fold["num_val"] for fold in folds) / fmean(fold["num_train"] for fold in folds)
    manifest = cross_validation.manifest
    pooled = out_of_fold.evaluate(manifest.count_per_class(Split.TRAIN))
    metrics = [fold["metrics"]["val"] for fold in folds]
    return {
        "version": VERSION,
        "num_folds": cross_validation.num_folds,
        "num_images": len(cross_validation.folds),
        "method": LABEL_METHOD if out_of_fold.is_multi_label else METHOD,
        "metrics": _compute_statistics(
            metrics,
            fraction,
            floors=_compute_floors(pooled, metrics, out_of_fold.measure_intervals(manifest)),
        ),
        "test_metrics": _compute_statistics(
            [fold["metrics"]["test"] for fold in folds if "test" in fold["metrics"]], None
        ),
        "out_of_fold": {
            "metrics": metrics_to_json(pooled),
            **details_to_json(pooled),
            **({THRESHOLDS_KEY: OTHER_FOLDS} if out_of_fold.is_multi_label else {}),
        },
        "num_label_errors": num_label_errors,
        "folds": folds,
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """Return the text of ``cross_validation.json``."""
    return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"


def _describe_fold(
    cross_validation: CrossValidation, fold: int, evaluation: AnyEvaluation | None
) -> dict[str, Any]:
    """Return the metrics of a fold, and what it has measured and kept.

    Args:
        cross_validation: Images and folds.
        fold: Fold, from 1.
        evaluation: Evaluation of its held-out images that takes the place of its own, whose
            thresholds these images chose; None for its own.
    """
    run = cross_validation.get_fold_run(fold)
    card = read_card_json(run.bundle_dir)
    facts = card["facts"]
    num_val = int((cross_validation.folds == fold).sum())
    calibration = facts.get("calibration")
    adjustment = facts.get("prior_adjustment")
    metrics = facts["metrics"]
    if evaluation is not None:
        metrics = {**metrics, "val": {**metrics["val"], **metrics_to_json(evaluation)}}
    return {
        "fold": fold,
        "run_dir": str(run.path.relative_to(cross_validation.run.path)),
        "num_train": len(cross_validation.folds) - num_val,
        "num_val": num_val,
        "metrics": metrics,
        "measured": {key: entry["value"] for key, entry in read_measured(run).items()},
        "kept": describe_kept(cross_validation, fold),
        "temperature": card.get("temperature", 1.0),
        "is_calibrated": calibration is not None,
        "prior_strength": None if adjustment is None else adjustment["strength"],
        "early_stop": facts.get("early_stop"),
        "validation_choices": list(list_validation_choices([ModelCard.from_json(card)])),
    }


def describe_kept(cross_validation: CrossValidation, fold: int) -> dict[str, Any]:
    """Return which weights of a fold are its best model.

    Returns:
        "position" on the line from the linear probe at 0 to the last epoch at 1, or None where an
        earlier epoch is better, or weights are not interpolated; and "epoch", from 1, or 0 for a
        probe that is better than all epochs, or that no epoch follows.
    """
    run = cross_validation.get_fold_run(fold)
    config = read_stored_config(run)
    if ResolvedConfig.from_config(config).is_probe_only:
        return {"position": 0.0, "epoch": 0}
    interpolation = load_checkpoint_file(run.best_checkpoint_path).get(INTERPOLATION_KEY)
    rows = MetricsCsv(run.metrics_path, reporter=Reporter())
    epochs = rows.get_rows(after=-1, up_to=rows.num_epochs)
    if interpolation is not None and interpolation["fraction"] is not None:
        return {"position": interpolation["fraction"], "epoch": rows.num_epochs}
    metric = config.checkpoint.monitor
    sign = 1 if metric.endswith("loss") else -1
    best = min(epochs, key=lambda row: sign * row[f"val/{metric}"])
    return {"position": None, "epoch": int(best["epoch"])}


def _compute_floors(
    pooled: AnyEvaluation,
    metrics: Sequence[Mapping[str, float | None]],
    intervals: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """Return the interval of each metric that the number of held-out images alone would give.

    Of the accuracy of all images that is Wilson's. A metric of labels is no mean over images, so
    that the mean of the folds is not the value of all images together: its interval is that of
    all images, moved to the mean of the folds.

    Args:
        pooled: Evaluation of all held-out images.
        metrics: Metrics of each fold.
        intervals: 95% interval of metrics of labels of all images.
    """
    if isinstance(pooled, Evaluation):
        return {"accuracy": pooled.accuracy_interval}
    floors = {}
    for name, (low, high) in intervals.items():
        known = [value for fold in metrics if (value := fold.get(name)) is not None]
        if not known:
            continue
        move = fmean(known) - pooled.metrics[name]
        upper = math.inf if name.endswith("loss") else 1.0
        floors[name] = max(0.0, low + move), min(upper, high + move)
    return floors


def _compute_statistics(
    metrics: Sequence[Mapping[str, float | None]],
    test_fraction: float | None,
    *,
    floors: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any] | None:
    """Return the statistics of each metric over folds, by name; None without folds.

    Args:
        metrics: Metrics of each fold; None for undefined ones.
        test_fraction: Held-out images of a fold divided by its training images, or None.
        floors: Interval by name that the interval of the mean covers.
    """
    if not metrics:
        return None
    statistics = {
        name: compute_fold_statistics(
            [fold.get(name) for fold in metrics],
            test_fraction=test_fraction,
            bounds=(0.0, math.inf if name.endswith("loss") else 1.0),
            floor=(floors or {}).get(name),
        )
        for name in dict.fromkeys(name for fold in metrics for name in fold)
    }
    return {name: entry.to_json() for name, entry in statistics.items() if entry is not None}
