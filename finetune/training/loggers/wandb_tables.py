"""What a model came to, as tables of Weights & Biases."""

from collections.abc import Sequence
from typing import Any

from finetune.types import Evaluation

_CLASS_TABLE_COLUMNS: list[str | int] = [
    "class", "train images", "images", "predicted", "precision", "recall", "recall low",
    "recall high", "F1",
]  # fmt: skip


def log_results(run: Any, evaluation: Evaluation, *, split: str, classes: Sequence[str]) -> None:
    """Log the final metrics of a split, its table of classes and its confusion matrix.

    Args:
        run: The W&B run.
        evaluation: Of the best model.
        split: "val" or "test".
        classes: Class names in index order.
    """
    import wandb

    low, high = evaluation.accuracy_interval
    numbers = {**evaluation.metrics, "accuracy_low": low, "accuracy_high": high}
    run.summary.update({f"final/{split}/{name}": value for name, value in numbers.items()})
    run.log({f"per_class/{split}": _build_class_table(evaluation)})
    table = wandb.Table(
        columns=["actual", "predicted", "images"],
        data=[
            [classes[true], classes[predicted], count]
            for true, row in enumerate(evaluation.confusion_matrix)
            for predicted, count in enumerate(row)
        ],
    )
    chart = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        table,
        {"Actual": "actual", "Predicted": "predicted", "nPredictions": "images"},
        {"title": f"Confusion matrix ({split})"},
    )
    run.log({f"confusion_matrix/{split}": chart})


def _build_class_table(evaluation: Evaluation) -> Any:
    """Return the classes as W&B's table; cells of what is undefined are empty."""
    import wandb

    return wandb.Table(
        columns=_CLASS_TABLE_COLUMNS,
        data=[
            [
                stats.name,
                stats.train_images,
                stats.support,
                stats.num_predicted,
                stats.precision,
                stats.recall,
                *(stats.recall_interval or (None, None)),
                stats.f1,
            ]
            for stats in evaluation.per_class
        ],
    )
