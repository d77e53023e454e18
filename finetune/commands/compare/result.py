"""Result of a comparison of backbones: sorted rows, failures and significance tests."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.compare.backbone_result import BackboneFailure, BackboneResult
from finetune.evaluation.significance import apply_holm_correction
from finetune.report.number_formats import format_metric_in_sentence
from finetune.units import format_count

SIGNIFICANCE_LEVEL = 0.05
"""Differences with a smaller p-value count as significant."""


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
        """P-value of each row against the first, Holm-corrected; None for the first.

        It is McNemar's of the images that are right, for multi-label images that of the paired
        difference of mean average precision.
        """
        if not self.rows:
            return []
        first, *others = self.rows
        return [None, *apply_holm_correction([first.compute_p_value(row) for row in others])]

    @property
    def differences(self) -> list[list[float] | None]:
        """Interval of the mean average precision of each row less that of the first.

        None for the first, and for images of one class.
        """
        precisions = [row.precision for row in self.rows]
        best = precisions[0] if precisions else None
        return [
            None
            if number == 0 or one is None or best is None
            else list(one.compute_difference_interval(best))
            for number, one in enumerate(precisions)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        rows = [
            {**row.to_json(), "p_value_vs_best": p_value, "difference_interval": difference}
            for row, p_value, difference in zip(
                self.rows, self.p_values, self.differences, strict=True
            )
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
        metric = self.rows[0].compared_metric if self.rows else "accuracy"
        ends = (f"{metric}_low", f"{metric}_high")
        names = _get_metric_names(self.rows)
        has_stages = not self.rows or self.rows[0].precision is None
        trailing = [name for name in _TRAILING_COLUMNS if has_stages or name not in _STAGE_COLUMNS]
        fields = [*_LEADING_COLUMNS, *names, *ends, *trailing, "error"]
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        for row, p_value in zip(self.rows, self.p_values, strict=True):
            values = {**row.to_json(), **row.metrics, "p_value_vs_best": p_value}
            values |= dict(zip(ends, row.interval, strict=True))
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
_STAGE_COLUMNS = ("stage_accuracy_lead", "stage_loss_ratio")
"""Columns of heads on earlier stages, which multi-label images have not."""

_TRAILING_COLUMNS = (
    "p_value_vs_best", "imagenet_top1_error",
    "imagenet_top5_error", "imagenet_source", *_STAGE_COLUMNS,
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
    fewer = [row for row in different if row.compared_value < best.compared_value]
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
                f"command below takes the one with the best "
                f"{format_metric_in_sentence(best.monitor)}."
            )
    if fewer:
        gain = _describe_gain(best, num_images, is_plural=False)
        sentences.append(f"{best.backbone} {gain} than {_join_names(fewer)} ({level}).")
    if more:
        gain, metric = _describe_gain(best, num_images, is_plural=len(more) > 1), best.monitor
        sentences.append(
            f"{_join_names(more)} {gain} than {best.backbone} ({level}), but with a worse "
            f"{format_metric_in_sentence(metric)}."
        )
    return " ".join(sentences)


def _describe_gain(row: BackboneResult, num_images: str, *, is_plural: bool) -> str:
    """Return what a backbone does better than another, as a predicate without that other."""
    if row.precision is None:
        verb = "classify" if is_plural else "classifies"
        return f"{verb} significantly more of the {num_images} correctly"
    verb = "have" if is_plural else "has"
    return f"{verb} a significantly higher mean average precision on the {num_images}"


def _join_names(rows: Sequence[BackboneResult]) -> str:
    *first, last = (row.backbone for row in rows)
    return f"{', '.join(first)} and {last}" if first else last


def _get_metric_names(rows: Sequence[BackboneResult]) -> list[str]:
    return list(rows[0].metrics) if rows else []


def _format_override(value: Any) -> str:
    """Return a value in the form in which KEY=VALUE parses it back."""
    return value if isinstance(value, str) else json.dumps(value)
