"""Outputs of a prediction that need the features of the images: embeddings, rejected answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.commands.predict.embedding_writers import (
    EmbeddedImages,
    EmbeddingWriter,
    open_embedding_writer,
)
from finetune.commands.predict.prediction_row import LABEL_SEPARATOR, Column
from finetune.commands.rejection.model_rejector import create_rejector
from finetune.evaluation.rejection.reject_options import RejectOptions
from finetune.inference.label_scoring import predict_labels
from finetune.inference.prediction_stream import PredictedBatch
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.feature_pass import capture_model_features, check_features
from finetune.inference.rejection.rejector import Rejector
from finetune.models.pre_logits import CapturedFeatures
from finetune.types import Judgement, Reporter

REJECTION_COLUMNS = (
    Column("rejected", "flag"),
    Column("reason", "text"),
    Column("distance", "number"),
)


@dataclass(slots=True)
class FeatureOutputs:
    """Outputs that need the features of the images, while they are predicted.

    Attributes:
        bundle: Model.
        predictor: Its predictor.
        rejector: Rejector of answers; None without ``--reject``.
        embeddings: File of the embeddings; None without ``--embeddings``.
        counts: Number of rejected answers for each reason so far.
        num_embeddings: Number of embeddings that were written so far.
    """

    bundle: ModelBundle
    predictor: Predictor
    rejector: Rejector | None = None
    embeddings: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)
    num_embeddings: int = 0
    _captured: CapturedFeatures | None = None
    _writer: EmbeddingWriter | None = None
    _features: Tensor | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of predictions besides the usual ones."""
        return () if self.rejector is None else REJECTION_COLUMNS

    @contextmanager
    def open(self) -> Iterator[None]:
        """Capture features and write embeddings within the block."""
        if self.embeddings is None:
            with self._capture():
                yield
            return
        with self._capture(), open_embedding_writer(self.embeddings) as writer:
            self._writer = writer
            yield

    def compute(self, views: Sequence[Tensor], logits: Tensor) -> Mapping[str, Sequence[Any]]:
        """Return further values of the images of a batch, see ``ComputeExtra``."""
        del views
        assert self._captured is not None, "called within open"
        self._features = self._captured.pop().cpu()
        if self.rejector is None:
            return {}
        probabilities = self.predictor.compute_probabilities(logits)
        judgements = self.rejector.judge(probabilities, self._features)
        self._count(judgements)
        values = [judgement.to_json() for judgement in judgements]
        return {column.name: [row[column.name] for row in values] for column in self.columns}

    def write_embeddings(self, batch: PredictedBatch) -> None:
        """Write the embeddings of a batch; called after ``compute`` and before the next batch."""
        if self._writer is None or not batch.rows:
            return
        assert self._features is not None, "computed with the batch"
        card = self.bundle.card
        names = [batch.images[row].name for row in batch.rows]
        values, columns = batch.probabilities.max(dim=1)
        labels = [card.classes[column] for column in columns.tolist()]
        if card.is_multi_label:
            rows = zip(names, batch.probabilities.tolist(), strict=True)
            found = (predict_labels(name, row, card) for name, row in rows)
            labels = [LABEL_SEPARATOR.join(prediction.labels) for prediction in found]
        folders = [batch.images[row].folder_name for row in batch.rows]
        images = EmbeddedImages(names, folders, labels, values.tolist(), self._features.numpy())
        self._writer.write(images)
        self.num_embeddings += len(names)

    def describe(self, num_images: int) -> list[str]:
        """Return sentences on what was written and rejected, of so many predictions."""
        lines = []
        if self.embeddings is not None and self._features is not None:
            width = self._features.shape[1]
            lines.append(
                f"{self.num_embeddings} embeddings of {width} features written to {self.embeddings}"
            )
        if self.rejector is not None:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
            num_rejected = sum(self.counts.values())
            lines.append(
                f"{num_rejected} of {num_images} answers rejected"
                + (f": {reasons}" if reasons else "")
            )
            lines += self.rejector.describe()
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the outputs as JSON values."""
        rejection = None if self.rejector is None else self.rejector.to_json()
        if rejection is not None:
            rejection["num_rejected"] = dict(self.counts)
        return {
            "embeddings": None if self.embeddings is None else str(self.embeddings),
            "num_embeddings": self.num_embeddings,
            "rejection": rejection,
        }

    @contextmanager
    def _capture(self) -> Iterator[None]:
        option = "--reject" if self.embeddings is None else "--embeddings"
        with capture_model_features(self.bundle, option=option) as captured:
            self._captured = captured
            yield

    def _count(self, judgements: Sequence[Judgement]) -> None:
        for judgement in judgements:
            if judgement.is_rejected:
                self.counts[judgement.reason] = self.counts.get(judgement.reason, 0) + 1


def create_feature_outputs(
    predictor: Predictor,
    bundle: ModelBundle,
    models: Sequence[Path],
    *,
    reject: RejectOptions | None,
    embeddings: Path | None,
    reporter: Reporter,
) -> FeatureOutputs | None:
    """Return the outputs that need features; None if there are none.

    Args:
        predictor: Predictor of the model.
        bundle: Model.
        models: Run folder or bundle folder that it was loaded from.
        reject: Which answers are rejected; None rejects none.
        embeddings: File for the features; None for none.
        reporter: Receiver of warnings.

    Raises:
        ConfigError: No threshold can be chosen.
        ModelError: The model has no features, or is an ensemble.
        RunFolderError: It has no statistics for ``--reject``, or they are damaged.
    """
    if embeddings is not None:
        check_features(bundle, option="--embeddings")
    if reject is None:
        return None if embeddings is None else FeatureOutputs(bundle, predictor, None, embeddings)
    rejector = create_rejector(bundle, models, reject, reporter)
    return FeatureOutputs(bundle, predictor, rejector, embeddings)
