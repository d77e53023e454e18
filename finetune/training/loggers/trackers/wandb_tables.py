"""Tables and charts of Weights & Biases."""

from collections.abc import Sequence
from typing import Any

from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.training.loggers.tracked_records import Cell, ReliabilityCurve, TrackedTable
from finetune.types import Evaluation

_CLASS_COLUMNS = (
    "class", "train images", "images", "predicted", "precision", "recall", "recall low",
    "recall high", "F1",
)  # fmt: skip
_LABEL_COLUMNS = (
    "label", "train images", "images", "predicted", "threshold", "average precision", "precision",
    "recall", "F1",
)  # fmt: skip


def tabulate_classes(evaluation: Evaluation | MultiLabelEvaluation) -> TrackedTable:
    """Return a table with one row per class or label; cells of undefined values are empty."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return TrackedTable(
            _LABEL_COLUMNS,
            [
                [
                    one.name, one.train_images, one.support, one.num_predicted, one.threshold,
                    one.average_precision, one.precision, one.recall, one.f1,
                ]
                for one in evaluation.per_label
            ],
        )  # fmt: skip
    return TrackedTable(
        _CLASS_COLUMNS,
        [
            [
                one.name, one.train_images, one.support, one.num_predicted, one.precision,
                one.recall, *(one.recall_interval or (None, None)), one.f1,
            ]
            for one in evaluation.per_class
        ],
    )  # fmt: skip


def build_wandb_table(table: TrackedTable) -> Any:
    """Return a table of W&B, whose cells are texts and numbers only.

    Pictures in cells are lost when an offline run is uploaded
    (https://github.com/wandb/wandb/issues/4611); rows refer to pictures by their number.
    """
    import wandb

    return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])


def build_confusion_chart(evaluation: Evaluation, classes: Sequence[str], *, split: str) -> Any:
    """Return the confusion matrix as a chart of W&B.

    Args:
        evaluation: Evaluation of the best model.
        classes: Class names in index order.
        split: Name of the split.
    """
    import wandb

    table = TrackedTable(
        ("actual", "predicted", "images"),
        [
            [classes[actual], classes[predicted], count]
            for actual, row in enumerate(evaluation.confusion_matrix)
            for predicted, count in enumerate(row)
        ],
    )
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        build_wandb_table(table),
        {"Actual": "actual", "Predicted": "predicted", "nPredictions": "images"},
        {"title": f"Confusion matrix ({split})"},
    )


def build_reliability_chart(curve: ReliabilityCurve, *, split: str) -> Any:
    """Return accuracy by confidence as a chart of W&B, with the diagonal of perfect calibration."""
    import wandb

    points = zip(curve.confidence, curve.accuracy, strict=True)
    rows: list[list[Cell]] = [[x, y, "model"] for x, y in points]
    rows += [[x, x, "perfect calibration"] for x in (0.0, 1.0)]
    table = TrackedTable(("confidence", "accuracy", "line"), rows)
    return wandb.plot.line(
        build_wandb_table(table),
        x="confidence",
        y="accuracy",
        stroke="line",
        title=f"Calibration ({split})",
    )
