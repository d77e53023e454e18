"""Result of a prediction: numbers and settings, and the predictions of all images."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.commands.predict.prediction_row import (
    PredictionRow,
    RowFormat,
    prediction_to_json,
)
from finetune.commands.predict.row_writers import TextWriter
from finetune.commands.saliency.overlays import Overlays
from finetune.types import Prediction, RejectedFile, Tta


@dataclass(frozen=True)
class PredictSummary:
    """Numbers and settings of a prediction.

    Attributes:
        num_images: Number of images with a prediction.
        num_unreadable: Number of images and other files without one.
        output: File or folder that was written; None for none.
        tta: Views of each image whose probabilities were averaged.
        prior: JSON description of the target class prior, see ``prior_to_json``.
        members: Path and weight of each member of an ensemble; empty for one model.
        image_size: Height and width of the input in pixels, if it is not that of the model.
        temperature: Divisor of the logits, if it is not that of the model.
        saliency: Saliency maps of the images; None if none were requested.
        features: Embeddings and rejected answers as JSON values; None if none were requested.
        notes: Sentences on them.
    """

    num_images: int
    num_unreadable: int
    output: Path | None = None
    tta: Tta = Tta.NONE
    prior: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[tuple[str, float], ...] = ()
    image_size: int | None = None
    temperature: float | None = None
    saliency: Overlays | None = None
    features: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": self.num_images,
            "num_unreadable": self.num_unreadable,
            "output": None if self.output is None else str(self.output),
            "members": [{"model": path, "weight": weight} for path, weight in self.members],
            "tta": self.tta is not Tta.NONE,
            "views": self.tta,
            "image_size": self.image_size,
            "temperature": self.temperature,
            "prior": dict(self.prior),
            "saliency": None if self.saliency is None else self.saliency.to_json(),
            "embeddings": None if self.features is None else self.features["embeddings"],
            "rejection": None if self.features is None else self.features["rejection"],
        }


@dataclass(frozen=True)
class PredictResult(PredictSummary):
    """Predictions, and the files without a prediction.

    Attributes:
        predictions: One entry per readable image.
        rejected: Files that were left out, with reasons.
        form: Form of the rows of a table.
    """

    predictions: tuple[Prediction, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()
    form: RowFormat = field(default_factory=lambda: RowFormat(()))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **super().to_json(),
            "predictions": [prediction_to_json(p, self.form) for p in self.predictions],
            "rejected": [asdict(entry) for entry in self.rejected],
        }

    def to_csv(self) -> str:
        """Return CSV text, one row per file: predictions, and then the files without one."""
        text = io.StringIO()
        writer = TextWriter(self.form, "csv", text.write)
        writer.write([PredictionRow.from_prediction(p) for p in self.predictions])
        writer.write([PredictionRow(entry.path, reason=entry.reason) for entry in self.rejected])
        return text.getvalue()
