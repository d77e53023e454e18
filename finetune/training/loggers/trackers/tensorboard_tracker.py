"""Event files for TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger

from finetune.training.loggers.tracked_records import (
    MAX_PICTURES,
    DatasetRecord,
    Interruption,
    RunResults,
    TrackedTable,
)
from finetune.training.loggers.tracker import Row, to_epoch_metrics
from finetune.training.loggers.trackers.figures import draw_charts
from finetune.training.loggers.trackers.wandb_tables import tabulate_classes


class TensorBoardTracker:
    """Tracker that writes event files.

    Every process of a run begins a file that replaces the points of earlier ones, and logs the
    completed epochs again: a kill loses what was not written yet.

    Args:
        folder: Folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        is_continued = any(folder.glob("events.out.tfevents.*"))
        self._logger = TensorBoardLogger(
            folder.parent,
            name="",
            version=folder.name,
            default_hp_metric=False,
            purge_step=0 if is_continued else None,
        )
        self._config: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name for messages."""
        return "TensorBoard"

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the config as a text, and keep it for the table of hyperparameters."""
        self._config.update(config)
        lines = (f"{key}: {json.dumps(value)}" for key, value in sorted(self._config.items()))
        self._add_text("config", "\n".join(f"    {line}" for line in lines))

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the digest and the counts of the images as a text."""
        facts = {"digest": dataset.digest, **dataset.facts}
        self._add_text("dataset", f"    {json.dumps(facts, ensure_ascii=False)}")

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of an epoch, and write them to the file."""
        self._logger.log_metrics(dict(metrics), step)
        self._logger.experiment.flush()

    def restore_epochs(self, rows: Sequence[Row]) -> None:
        """Log all completed epochs again."""
        for row in rows:
            metrics, step = to_epoch_metrics(row)
            self.log_epoch(metrics, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log values of the run at step 0; texts are left out."""
        self._logger.log_metrics(_select_numbers(values), 0)

    def log_results(self, results: RunResults, *, step: int) -> None:
        """Log final metrics, tables, charts and pictures."""
        writer = self._logger.experiment
        final = _select_numbers(results.compute_final_metrics())
        self.log_summary(results.summary)
        self._logger.log_hyperparams(self._config, metrics=final, step=step)
        for split, evaluation in results.evaluations.items():
            kind = "per_class" if hasattr(evaluation, "per_class") else "per_label"
            self._add_text(f"{kind}/{split}", _format_markdown(tabulate_classes(evaluation)))
        for name, table in results.tables.items():
            self._add_text(f"{name}/table", _format_markdown(table))
        for name, figure in draw_charts(results):
            writer.add_figure(name, figure, step)
        for name, pictures in results.pictures.items():
            for number, one in enumerate(pictures[:MAX_PICTURES], 1):
                pixels = np.asarray(one.image.convert("RGB"))
                writer.add_image(f"{name}/{number:02}", pixels, step, dataformats="HWC")

    def interrupt(self, interruption: Interruption, rows: Sequence[Row]) -> None:
        """Close the file."""
        self.finish(rows)

    def finish(self, rows: Sequence[Row]) -> None:
        """Close the file."""
        self._logger.experiment.close()

    def _add_text(self, name: str, text: str) -> None:
        self._logger.experiment.add_text(name, text, 0)


def _select_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _format_markdown(table: TrackedTable) -> str:
    header = [list(table.columns), ["---"] * len(table.columns)]
    lines = [*header, *([_format_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format_cell(cell: object) -> str:
    if cell is None:
        return ""
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text.replace("|", "&#124;").replace("\n", " ")
