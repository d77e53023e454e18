"""Metrics of each epoch in ``metrics.csv``."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from finetune.system.files import write_text
from finetune.types import Reporter

_LEADING_COLUMNS = ("epoch", "step", "seconds", "train/loss")


class MetricsCsv(Checkpoint):
    """Callback that writes one row per epoch; a resumed run replaces the rows that it repeats.

    It derives from ``Checkpoint``, whose instances Lightning calls last, and is placed before the
    checkpoint callbacks: a logger would be called after them, and a kill in between would lose the
    row for good.

    Args:
        path: The file; its existing rows are kept.
        reporter: Receives each row.
    """

    def __init__(self, path: Path, *, reporter: Reporter) -> None:
        self.path = path
        self.reporter = reporter
        self._rows: dict[int, dict[str, Any]] = _read_rows(path)
        self._has_started = False
        self._last_row_time = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the first epoch."""
        self._last_row_time = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, on rank 0."""
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.record(metrics, epoch=trainer.current_epoch, step=trainer.global_step)

    def drop_rows_after(self, epoch: int) -> None:
        """Drop the rows of epochs that a killed run wrote and a resumed run repeats."""
        self._rows = {number: row for number, row in self._rows.items() if number <= epoch}

    @property
    def num_epochs(self) -> int:
        """The epoch of the last row."""
        return max(self._rows, default=0)

    def get_rows(self, *, after: int, up_to: int) -> list[dict[str, float]]:
        """Return the rows of the epochs in (after, up_to], counted from 1; row 0 is the probe."""
        rows = (self._rows[epoch] for epoch in sorted(self._rows) if after < epoch <= up_to)
        return [{name: float(value) for name, value in row.items()} for row in rows]

    def record(self, metrics: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Write a row.

        Args:
            metrics: Metric values by name.
            epoch: Epoch, counted from 0; the file counts from 1.
            step: Number of completed optimizer steps.
        """
        if not self._has_started:
            self._has_started = True
            self._rows = {number: row for number, row in self._rows.items() if number <= epoch}
        now = time.monotonic()
        seconds, self._last_row_time = round(now - self._last_row_time, 3), now
        row = {"epoch": epoch + 1, "step": step, "seconds": seconds, **metrics}
        self._rows[epoch + 1] = row
        write_text(self.path, _format_csv(list(self._rows.values())))
        self.reporter.show_epoch(row)


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            int(row["epoch"]): {name: value for name, value in row.items() if value != ""}
            for row in csv.DictReader(stream)
        }


def _order_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all rows in the order of the rows.

    A name that the first rows lack, as those of a layer group that was frozen, stands among the
    others with its prefix, where its own row has it, not at the end.
    """
    names, known = list(rows[0]), set(rows[0])
    for row in rows[1:]:
        in_row = [] if row.keys() <= known else list(row)
        for position, name in enumerate(in_row):
            if name in known:
                continue
            prefix = name.partition("/")[0] + "/"
            before = [n for n in in_row[:position] if n.startswith(prefix)]
            after = [n for n in in_row[position:] if n.startswith(prefix) and n in known]
            if before:
                names.insert(names.index(before[-1]) + 1, name)
            elif after:
                names.insert(names.index(after[0]), name)
            else:
                names.append(name)
            known.add(name)
    return names


def _format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = _order_names(rows)
    columns = [name for name in _LEADING_COLUMNS if name in names]
    columns += [name for name in names if name not in _LEADING_COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
