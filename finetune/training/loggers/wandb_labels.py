"""Final metrics of a multi-label model in Weights & Biases."""

from typing import Any

from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation

_COLUMNS: list[str | int] = [
    "label", "train images", "images", "predicted", "threshold", "average precision", "precision",
    "recall", "F1",
]  # fmt: skip


def log_label_evaluation(run: Any, evaluation: MultiLabelEvaluation, *, split: str) -> None:
    """Log the final metrics of a split and its table of labels; undefined cells are empty.

    Args:
        run: W&B run.
        evaluation: Evaluation of the best model.
        split: "val" or "test".
    """
    import wandb

    metrics = evaluation.metrics
    run.summary.update({f"final/{split}/{name}": value for name, value in metrics.items()})
    rows = [
        [
            one.name, one.train_images, one.support, one.num_predicted, one.threshold,
            one.average_precision, one.precision, one.recall, one.f1,
        ]
        for one in evaluation.per_label
    ]  # fmt: skip
    run.log({f"per_label/{split}": wandb.Table(columns=_COLUMNS, data=rows)})
