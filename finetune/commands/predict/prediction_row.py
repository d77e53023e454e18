"""Rows of predictions: one for each image, and their columns in tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError
from finetune.inference.label_scoring import predict_labels
from finetune.types import Judgement, Prediction

if TYPE_CHECKING:
    from finetune.inference.prediction_stream import PredictedBatch

ColumnKind = Literal["text", "texts", "number", "numbers", "flag"]
"""Kind of the values of a column: a text or a number, or a list of them, or true and false."""

LABEL_SEPARATOR = "|"
"""Text between the labels of a multi-label image in a CSV."""


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """Prediction of an image, or the reason why there is none.

    Attributes:
        name: Name of the image: its path, or the table and row or archive and member it is in.
        labels: Most probable classes, or the labels of a multi-label image, most probable first.
        label_probabilities: Their probabilities in [0, 1].
        probabilities: Probability of every class, in class order, shape (K,); None without one.
        reason: Why the image could not be read; None for one that was.
        extra: Further values by the names of their columns.
    """

    name: str
    labels: tuple[str, ...] = ()
    label_probabilities: tuple[float, ...] = ()
    probabilities: Sequence[float] | None = None
    reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_prediction(self, *, keeps_all: bool) -> Prediction:
        """Return the prediction of an image that was read.

        Args:
            keeps_all: Whether to keep the probabilities of all classes.
        """
        every = self.probabilities
        kept = tuple(every) if keeps_all and every is not None else None
        judgement = None
        if "rejected" in self.extra:
            judgement = Judgement(self.extra["reason"] or "", self.extra["distance"])
        return Prediction(self.name, self.labels, self.label_probabilities, kept, judgement)

    @classmethod
    def from_prediction(cls, prediction: Prediction) -> Self:
        """Return the row of a prediction."""
        return cls(
            prediction.path,
            prediction.labels,
            prediction.probabilities,
            prediction.all_probabilities,
            extra={} if prediction.judgement is None else prediction.judgement.to_json(),
        )


@dataclass(frozen=True, slots=True)
class Column:
    """Column of a table of predictions."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Form of the rows of a model's predictions.

    Attributes:
        classes: Class names, shape (K,).
        top_k: Number of classes of an image, at most K.
        is_multi_label: Whether an image has any number of labels.
        keeps_all: Whether rows have the probability of every class.
        extra: Further columns.
    """

    classes: tuple[str, ...]
    top_k: int = 1
    is_multi_label: bool = False
    keeps_all: bool = False
    extra: tuple[Column, ...] = ()

    def list_columns(self, *, can_be_lines: bool = True) -> list[Column]:
        """Return the columns: path, labels and probabilities, further ones, and error.

        Args:
            can_be_lines: Whether the rows may be JSON lines instead, for the message.

        Raises:
            ConfigError: The column of a class has the name of that of a rank.
        """
        columns = [Column("path", "text")]
        if self.is_multi_label:
            columns.append(Column("labels", "texts"))
        else:
            for rank in range(1, self.top_k + 1):
                suffix = "" if rank == 1 else f"_{rank}"
                columns.append(Column(f"label{suffix}", "text"))
                columns.append(Column(f"probability{suffix}", "number"))
        if self.keeps_all:
            ranks = {column.name for column in columns}
            for name in self.classes:
                column = Column(f"probability_{name}", "number")
                if column.name in ranks:
                    other = ", or write JSON lines (--output-format jsonl)" if can_be_lines else ""
                    raise ConfigError(
                        f"--top-k {self.top_k} with --all-probabilities has two columns "
                        f"{column.name}: that of rank {name}, and that of the class '{name}'. "
                        f"Leave out one of the options{other}."
                    )
                columns.append(column)
        return [*columns, *self.extra, Column("error", "text")]

    def list_cells(self, row: PredictionRow) -> list[Any]:
        """Return the values of a row, in the order of the columns; None for empty ones."""
        is_read = row.reason is None
        cells: list[Any] = [row.name]
        if self.is_multi_label:
            cells.append(list(row.labels) if is_read else None)
        elif is_read:
            pairs = zip(row.labels, row.label_probabilities, strict=True)
            cells += [cell for pair in pairs for cell in pair]
        else:
            cells += [None] * 2 * self.top_k
        if self.keeps_all:
            cells += row.probabilities or [None] * len(self.classes)
        return [*cells, *(row.extra.get(column.name) for column in self.extra), row.reason]

    def to_json(self, row: PredictionRow) -> dict[str, Any]:
        """Return a row as JSON values; those of an unreadable image are a path and an error."""
        if row.reason is not None:
            return {"path": row.name, "error": row.reason}
        tree = prediction_to_json(row.to_prediction(keeps_all=self.keeps_all), self)
        return {**tree, **row.extra}


def prediction_to_json(prediction: Prediction, form: RowFormat) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    ranked = [{"label": label, "probability": probability} for label, probability in pairs]
    tree: dict[str, Any] = {"path": prediction.path}
    if form.is_multi_label:
        tree["labels"] = ranked
    else:
        tree |= {
            "label": prediction.labels[0],
            "probability": prediction.probabilities[0],
            "top": ranked,
        }
    if prediction.all_probabilities is not None:
        tree["probabilities"] = dict(zip(form.classes, prediction.all_probabilities, strict=True))
    if prediction.judgement is not None:
        tree |= prediction.judgement.to_json()
    return tree


def build_rows(
    batch: "PredictedBatch", card: ModelCard, form: RowFormat
) -> Iterator[PredictionRow]:
    """Yield the rows of a batch, in the order of its images."""
    values, indices = batch.probabilities.topk(form.top_k, dim=1)
    top = zip(values.tolist(), indices.tolist(), strict=True)
    every = batch.probabilities.tolist() if form.keeps_all else [None] * len(batch.rows)
    place_of = {row: place for place, row in enumerate(batch.rows)}
    ranked = list(top)
    for row, image in enumerate(batch.images):
        if row not in place_of:
            yield PredictionRow(image.name, reason=batch.reasons[row])
            continue
        place = place_of[row]
        extra = {name: column[place] for name, column in batch.extra.items()}
        if form.is_multi_label:
            found = predict_labels(image.name, every[place] or (), card)
            labels, probabilities = found.labels, found.probabilities
        else:
            probabilities, columns = tuple(ranked[place][0]), ranked[place][1]
            labels = tuple(form.classes[column] for column in columns)
        yield PredictionRow(image.name, labels, probabilities, every[place], extra=extra)


def format_cell(value: Any, kind: ColumnKind) -> str:
    """Return a value as text for a CSV."""
    if value is None:
        return ""
    if kind == "number":
        return f"{value:.6f}"
    if kind == "flag":
        return "true" if value else "false"
    if kind == "texts":
        return LABEL_SEPARATOR.join(value)
    return json.dumps(value) if kind == "numbers" else str(value)
