"""Result of a comparison of backbones: sorted rows, failures and significance tests."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.commands.compare.imagenet_reference import find_imagenet_error_rates
from finetune.evaluation.significance import (
    apply_holm_correction,
    compute_mcnemar_p_value,
    compute_wilson_interval,
)
from finetune.probe.stage_probes import StageProbes
from finetune.units import format_count

SIGNIFICANCE_LEVEL = 0.05
"""Differences with a smaller p-value count as significant."""

_METRIC_NAMES = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True, slots=True)
class BackboneResult:
    """Cost and probe metrics of one backbone.

    Attributes:
        backbone: timm name.
        weights: Value for ``--weights`` of ``fit``: "hub", or a file or folder.
        image_size: Side of the input in pixels.
        num_parameters: Number of parameters, including the new classifier.
        num_macs: Multiply-accumulate operations of one forward pass on one image.
        images_per_second: Inference throughput on this machine, without reading images.
        training_bytes: Memory of a training step of all layers; None if it does not fit.
        batch_size: Micro-batch size of that training step.
        monitor: Metric by which ``fit`` would choose its best epoch.
        metrics: Metric name to value on the validation images.
        is_correct: Whether each validation image is classified correctly, bool, shape (N,).
        num_images: Number of training and validation images.
        num_computed: Number of these whose features were computed, not read from the cache.
        seconds: Total duration.
        stages: Results of heads on earlier stages; None where none were probed.
    """

    backbone: str
    weights: str
    image_size: int
    num_parameters: int
    num_macs: int
    images_per_second: float
    training_bytes: int | None
    batch_size: int
    monitor: str
    metrics: Mapping[str, float]
    is_correct: NDArray[np.bool_] = field(repr=False, compare=False)
    num_images: int
    num_computed: int
    seconds: float
    stages: StageProbes | None = field(default=None, repr=False)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95% confidence interval of the accuracy (Wilson score)."""
        return compute_wilson_interval(int(self.is_correct.sum()), len(self.is_correct))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        published = find_imagenet_error_rates(self.backbone, weights=self.weights)
        num_bytes = self.training_bytes
        return {
            "backbone": self.backbone,
            "weights": self.weights,
            "image_size": self.image_size,
            "num_parameters": self.num_parameters,
            "gmacs": round(self.num_macs / 1e9, 4),
            "images_per_second": round(self.images_per_second, 2),
            "training_memory_gb": None if num_bytes is None else round(num_bytes / 1e9, 9),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "accuracy_interval": list(self.accuracy_interval),
            "imagenet_top1_error": None if published is None else published.top1,
            "imagenet_top5_error": None if published is None else published.top5,
            "imagenet_source": None if published is None else published.source,
            "imagenet_is_of_weights": None if published is None else published.is_of_weights,
            "stages": None if self.stages is None else self.stages.to_json(),
            "num_images": self.num_images,
            "num_images_computed": self.num_computed,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class BackboneFailure:
    """A backbone that could not be compared.

    Attributes:
        backbone: timm name.
        reason: Error message, with the remedy if there is one.
        exit_code: Exit code of the error.
    """

    backbone: str
    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Compared backbones, best first, and those that failed.

    Attributes:
        data: Data path as given.
        rows: One entry per backbone.
        failures: One entry per backbone that could not be compared.
        settings: Dotted config key to value of the settings that differ from the defaults.
        seconds: Total duration.
    """

    data: Path
    rows: tuple[BackboneResult, ...]
    failures: tuple[BackboneFailure, ...]
    settings: Mapping[str, Any]
    seconds: float

    @property
    def monitor(self) -> str | None:
        """Metric by which the rows are sorted; None if all failed."""
        return self.rows[0].monitor if self.rows else None

    @property
    def p_values(self) -> list[float | None]:
        """McNemar p-value of each row against the first, Holm-corrected; None for the first."""
        if not self.rows:
            return []
        first, *others = (row.is_correct for row in self.rows)
        return [
            None,
            *apply_holm_correction([compute_mcnemar_p_value(first, other) for other in others]),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        rows = [
            {**row.to_json(), "p_value_vs_best": p_value}
            for row, p_value in zip(self.rows, self.p_values, strict=True)
        ]
        return {
            "data": str(self.data),
            "sorted_by": self.monitor,
            "num_val_images": len(self.rows[0].is_correct) if self.rows else 0,
            "training_memory_micro_batch_size": self.rows[0].batch_size if self.rows else None,
            "backbones": rows,
            "failures": [
                {"backbone": failure.backbone, "reason": failure.reason}
                for failure in self.failures
            ],
            "significance_summary": summarize_significance(self),
            "next_command": self.next_command,
            "seconds": round(self.seconds, 3),
        }

    def to_csv(self) -> str:
        """Return CSV text with one line per backbone; failures come last, with their reason."""
        text = io.StringIO()
        fields = [*_LEADING_COLUMNS, *_get_metric_names(self.rows), *_TRAILING_COLUMNS, "error"]
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        for row, p_value in zip(self.rows, self.p_values, strict=True):
            low, high = row.accuracy_interval
            values = {**row.to_json(), **row.metrics, "p_value_vs_best": p_value}
            values |= {"accuracy_low": low, "accuracy_high": high}
            if row.stages is not None:
                values["stage_accuracy_lead"] = row.stages.accuracy_lead
                values["stage_loss_ratio"] = row.stages.loss_ratio
            writer.writerow({name: values.get(name) for name in fields})
        for failure in self.failures:
            writer.writerow({"backbone": failure.backbone, "error": failure.reason})
        return text.getvalue()

    @property
    def next_command(self) -> list[str]:
        """Command line that fine-tunes the best backbone; empty if all failed."""
        if not self.rows:
            return []
        best = self.rows[0]
        weights = [] if best.weights == "hub" else ["--weights", best.weights]
        settings = [f"{key}={_format_override(value)}" for key, value in self.settings.items()]
        command = ["finetune", "fit", str(self.data), "--backbone", best.backbone]
        return [*command, *weights, *settings]


_LEADING_COLUMNS = (
    "backbone", "weights", "image_size", "num_parameters", "gmacs", "images_per_second",
    "training_memory_gb",
)  # fmt: skip
_TRAILING_COLUMNS = (
    "accuracy_low", "accuracy_high", "p_value_vs_best", "imagenet_top1_error",
    "imagenet_top5_error", "imagenet_source", "stage_accuracy_lead", "stage_loss_ratio",
    "num_images", "num_images_computed", "seconds",
)  # fmt: skip


def sort_by_score(rows: Sequence[BackboneResult]) -> tuple[BackboneResult, ...]:
    """Return the rows sorted by their monitored metric, best first; ties by fewer MACs."""

    def get_sort_key(row: BackboneResult) -> tuple[float, int]:
        score = row.metrics[row.monitor]
        return score if row.monitor == "loss" else -score, row.num_macs

    return tuple(sorted(rows, key=get_sort_key))


def summarize_significance(result: CompareResult) -> str:
    """Return sentences on the significance of the differences; "" with fewer than two rows."""
    if len(result.rows) < 2:
        return ""
    best = result.rows[0]
    others = list(zip(result.rows[1:], result.p_values[1:], strict=True))
    similar = [row for row, p_value in others if p_value is None or p_value >= SIGNIFICANCE_LEVEL]
    different = [row for row, _ in others if row not in similar]
    fewer = [row for row in different if row.is_correct.sum() < best.is_correct.sum()]
    more = [row for row in different if row not in fewer]
    level = f"p < {SIGNIFICANCE_LEVEL:g}"
    num_images = format_count(len(best.is_correct), "validation image")
    sentences = []
    if similar:
        verb = "does" if len(similar) == 1 else "do"
        sentences.append(
            f"{_join_names(similar)} {verb} not differ significantly from {best.backbone} on the "
            f"{num_images}."
        )
        cheapest = min([best, *similar], key=lambda row: row.num_macs)
        if cheapest is not best:
            sentences.append(
                f"The cheapest of these is {cheapest.backbone}, which may be preferred; the "
                f"command below takes the one with the best {_name_metric(best.monitor)}."
            )
    if fewer:
        sentences.append(
            f"{best.backbone} classifies significantly more of the {num_images} correctly than "
            f"{_join_names(fewer)} ({level})."
        )
    if more:
        verb = "classifies" if len(more) == 1 else "classify"
        metric = _name_metric(best.monitor)
        sentences.append(
            f"{_join_names(more)} {verb} significantly more of the {num_images} correctly than "
            f"{best.backbone} ({level}), but with a worse {metric}."
        )
    return " ".join(sentences)


def _name_metric(name: str) -> str:
    return _METRIC_NAMES.get(name, name)


def _join_names(rows: Sequence[BackboneResult]) -> str:
    *first, last = (row.backbone for row in rows)
    return f"{', '.join(first)} and {last}" if first else last


def _get_metric_names(rows: Sequence[BackboneResult]) -> list[str]:
    return list(rows[0].metrics) if rows else []


def _format_override(value: Any) -> str:
    """Return a value in the form in which KEY=VALUE parses it back."""
    return value if isinstance(value, str) else json.dumps(value)
