"""What a comparison of backbones comes to: sorted rows, what failed, and what of it is chance."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.significance import (
    apply_holm_correction,
    compute_mcnemar_p_value,
    compute_wilson_interval,
)
from finetune.models.imagenet_reference import find_imagenet_error_rates

SIGNIFICANCE_LEVEL = 0.05
"""Differences that chance makes less often than this count as more than chance."""

_SCORE_NAMES = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True, slots=True)
class BackboneResult:
    """A backbone, what it costs and what its probe is worth.

    Attributes:
        backbone: timm name.
        weights: What ``--weights`` of ``fit`` takes: "hub", or a file or folder.
        image_size: Side of the input in pixels.
        num_parameters: With the new classifier.
        num_macs: Multiply-adds of one image.
        images_per_second: Answered for in eval mode on this machine, without reading.
        training_bytes: Memory of a training step of every layer; None where it does not fit.
        batch_size: Of that step.
        monitor: The metric that ``fit`` would choose its best epoch by.
        metrics: Of the validation images, by name.
        is_correct: Whether each validation image comes out right, shape (N,).
        num_images: Of training and validation.
        num_computed: Of these, those that the backbone had to be asked about.
        seconds: All of it.
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

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the accuracy."""
        return compute_wilson_interval(int(self.is_correct.sum()), len(self.is_correct))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        published = find_imagenet_error_rates(self.backbone)
        num_bytes = self.training_bytes
        return {
            "backbone": self.backbone,
            "weights": self.weights,
            "image_size": self.image_size,
            "parameters": self.num_parameters,
            "gmacs": round(self.num_macs / 1e9, 4),
            "images_per_second": round(self.images_per_second, 2),
            "training_memory_gb": None if num_bytes is None else round(num_bytes / 1e9, 3),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "accuracy_interval": list(self.accuracy_interval),
            "imagenet_top1_error": None if published is None else published.top1,
            "imagenet_top5_error": None if published is None else published.top5,
            "images": self.num_images,
            "num_images_computed": self.num_computed,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class BackboneFailure:
    """A backbone that could not be compared.

    Attributes:
        backbone: timm name.
        reason: What went wrong, and what to do.
        exit_code: Of what went wrong.
    """

    backbone: str
    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Backbones, the best first, and those that failed.

    Attributes:
        data: The images as they were named.
        rows: One a backbone.
        failures: One a backbone that could not be compared.
        settings: Dotted key to value of what was asked for besides.
        seconds: All of it.
    """

    data: Path
    rows: tuple[BackboneResult, ...]
    failures: tuple[BackboneFailure, ...]
    settings: Mapping[str, Any]
    seconds: float

    @property
    def monitor(self) -> str | None:
        """The metric that they are sorted by; None where all failed."""
        return self.rows[0].monitor if self.rows else None

    @property
    def p_values(self) -> list[float | None]:
        """How probable it is that chance alone tells each row from the first; None for that."""
        if not self.rows:
            return []
        first, *others = (row.is_correct for row in self.rows)
        return [
            None,
            *apply_holm_correction([compute_mcnemar_p_value(first, other) for other in others]),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
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
            "failed": [{"backbone": one.backbone, "reason": one.reason} for one in self.failures],
            "verdict": summarize_significance(self),
            "next": self.next_command,
            "seconds": round(self.seconds, 3),
        }

    def to_csv(self) -> str:
        """Return a line a backbone under a head, those that failed last with the reason."""
        text = io.StringIO()
        names = [*_get_metric_names(self.rows)]
        fields = [*_LEADING_COLUMNS, *names, *_TRAILING_COLUMNS, "failed"]
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        for row, p_value in zip(self.rows, self.p_values, strict=True):
            low, high = row.accuracy_interval
            values = {**row.to_json(), **row.metrics, "p_value_vs_best": p_value}
            values |= {"accuracy_low": low, "accuracy_high": high}
            writer.writerow({name: values.get(name) for name in fields})
        for one in self.failures:
            writer.writerow({"backbone": one.backbone, "failed": one.reason})
        return text.getvalue()

    @property
    def next_command(self) -> list[str]:
        """The command line that fine-tunes the best backbone; none where all failed."""
        if not self.rows:
            return []
        best = self.rows[0]
        weights = [] if best.weights == "hub" else ["--weights", best.weights]
        settings = [f"{key}={_format_override(value)}" for key, value in self.settings.items()]
        words = ["finetune", "fit", str(self.data), "--backbone", best.backbone]
        return [*words, *weights, *settings]


_LEADING_COLUMNS = (
    "backbone", "weights", "image_size", "parameters", "gmacs", "images_per_second",
    "training_memory_gb",
)  # fmt: skip
_TRAILING_COLUMNS = (
    "accuracy_low", "accuracy_high", "p_value_vs_best", "imagenet_top1_error",
    "imagenet_top5_error", "images", "num_images_computed", "seconds",
)  # fmt: skip


def sort_by_score(rows: Sequence[BackboneResult]) -> tuple[BackboneResult, ...]:
    """Return the rows by their score, and of equal ones the cheaper first."""

    def place(row: BackboneResult) -> tuple[float, int]:
        score = row.metrics[row.monitor]
        return score if row.monitor == "loss" else -score, row.num_macs

    return tuple(sorted(rows, key=place))


def summarize_significance(result: CompareResult) -> str:
    """Say in words which differences may be chance; "" where there is nothing to compare."""
    if len(result.rows) < 2:
        return ""
    best = result.rows[0]
    others = list(zip(result.rows[1:], result.p_values[1:], strict=True))
    alike = [row for row, p_value in others if p_value is None or p_value >= SIGNIFICANCE_LEVEL]
    apart = [row for row, _ in others if row not in alike]
    fewer = [row for row in apart if row.is_correct.sum() < best.is_correct.sum()]
    more = [row for row in apart if row not in fewer]
    count = len(best.is_correct)
    said = []
    if alike:
        do = "does" if len(alike) == 1 else "do"
        said.append(
            f"{_join_names(alike)} {do} not differ from {best.backbone} by more than chance on these "
            f"{count} images."
        )
        cheapest = min([best, *alike], key=lambda row: row.num_macs)
        if cheapest is not best:
            of_them = "of the two" if len(alike) == 1 else "of these"
            said.append(f"The cheapest {of_them} is {cheapest.backbone}.")
    if fewer:
        said.append(
            f"{best.backbone} gets more of the {count} images right than {_join_names(fewer)}, by more "
            f"than chance."
        )
    if more:
        has = "has" if len(more) == 1 else "have"
        name = _SCORE_NAMES.get(best.monitor, best.monitor)
        said.append(
            f"{_join_names(more)} {has} more of the {count} images right than {best.backbone}, by more "
            f"than chance, but a worse {name}."
        )
    return " ".join(said)


def _join_names(rows: Sequence[BackboneResult]) -> str:
    *first, last = (row.backbone for row in rows)
    return f"{', '.join(first)} and {last}" if first else last


def _get_metric_names(rows: Sequence[BackboneResult]) -> list[str]:
    return list(rows[0].metrics) if rows else []


def _format_override(value: Any) -> str:
    """Return a value as YAML reads it back on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
