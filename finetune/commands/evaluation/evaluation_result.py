"""Result of an evaluation, and its JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.commands.run_split import RunDifferences
from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.inference.scoring import AnyEvaluation, details_to_json, metrics_to_json
from finetune.types import RejectedFile, Split, Tta


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Evaluation of a model, with the model and the images that it is for.

    Attributes:
        model: Model path as given; the first of several.
        data: Root of the images.
        split: Evaluated split; None for all images.
        evaluation: Metrics.
        rejected: Files that were left out, with reasons.
        tta: Views of each image whose probabilities were averaged.
        prior: JSON description of the target class prior, see ``prior_to_json``.
        without_leaks: Metrics without leaked images, whose duplicates are in the training or
            validation split of the run; None if there are none.
        num_training_images: Number of evaluated images that the model, or a member, was trained
            on, by path and content; None if no model is in a run folder.
        differences: Differences of the data from those of the run; None for other data.
        members: Path and weight of each member of an ensemble; empty for one model.
        image_size: Height and width of the input in pixels, if it is not that of the model.
        validation_choices: What the images chose of the model, if they are validation images, such
            as the weights of an ensemble: their metrics are optimistic.
        rejection: What ``--reject`` does to the images, as JSON values; None without it.
    """

    model: Path
    data: Path
    split: Split | None
    evaluation: AnyEvaluation
    rejected: tuple[RejectedFile, ...]
    tta: Tta = Tta.NONE
    prior: Mapping[str, Any] = field(default_factory=dict)
    without_leaks: AnyEvaluation | None = None
    num_training_images: int | None = None
    differences: RunDifferences | None = None
    members: tuple[tuple[str, float], ...] = ()
    image_size: int | None = None
    validation_choices: tuple[str, ...] = ()
    rejection: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "model": str(self.model),
            "data": str(self.data),
            "split": self.split,
            "members": [{"model": path, "weight": weight} for path, weight in self.members],
            "tta": self.tta is not Tta.NONE,
            "views": self.tta,
            "image_size": self.image_size,
            "prior": dict(self.prior),
            "metrics": metrics_to_json(self.evaluation),
            **details_to_json(self.evaluation),
            **_confusion_to_json(self.evaluation),
            "without_leaks": None
            if self.without_leaks is None
            else {
                "metrics": metrics_to_json(self.without_leaks),
                **details_to_json(self.without_leaks),
            },
            "validation_choices": list(self.validation_choices),
            "rejection": None if self.rejection is None else dict(self.rejection),
            "num_training_images": self.num_training_images,
            "differences": None if self.differences is None else self.differences.to_json(),
            "rejected": [asdict(entry) for entry in self.rejected],
        }


def _confusion_to_json(evaluation: AnyEvaluation) -> dict[str, Any]:
    """Return the confusion matrix; nothing for labels that do not exclude each other."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return {}
    return {
        "confusion_matrix": {
            "classes": [stats.name for stats in evaluation.per_class],
            "counts": [list(row) for row in evaluation.confusion_matrix],
        }
    }
