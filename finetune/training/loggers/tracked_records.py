"""Dataset, pictures, tables and results of a run as plain values, for trackers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.types import Evaluation

MAX_PICTURES = 32
"""Pictures that are logged under one name."""

STEP_KEY = "trainer/global_step"
"""Name of the number of optimizer steps, as Lightning logs it."""

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """Images that a run is trained and judged on.

    Attributes:
        digest: Digest of paths, labels, splits and contents of all images, hexadecimal.
        manifest_path: Manifest of the run.
        facts: Number of images by split and class.
    """

    digest: str
    manifest_path: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """Image with a caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True, slots=True)
class TrackedTable:
    """Table of texts and numbers; None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class ReliabilityCurve:
    """Accuracy of predictions by their confidence.

    Attributes:
        confidence: Mean confidence of each bin, in [0, 1].
        accuracy: Accuracy of each bin, in [0, 1].
        counts: Predictions of each bin.
    """

    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class TrackedBundle:
    """Bundle of the finished model.

    Attributes:
        path: Folder.
        facts: Metrics, classes, licence of the weights and origin, as JSON values.
    """

    path: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunResults:
    """Results of a finished run.

    Attributes:
        evaluations: Evaluation of the best model by split.
        classes: Class names in index order.
        bundle: The finished model.
        summary: Further values of the run by name.
        pictures: Pictures by name, at most ``MAX_PICTURES`` of each.
        tables: Tables by name.
        reliability: Reliability curve by split.
        report_path: Page with everything that is known of the run; None without one.
    """

    evaluations: Mapping[str, Evaluation | MultiLabelEvaluation]
    classes: Sequence[str]
    bundle: TrackedBundle
    summary: Mapping[str, Cell] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    tables: Mapping[str, TrackedTable] = field(default_factory=dict)
    reliability: Mapping[str, ReliabilityCurve] = field(default_factory=dict)
    report_path: Path | None = None

    def compute_final_metrics(self) -> dict[str, float | None]:
        """Return the metrics of the best model as ``final/<split>/<metric>``."""
        metrics: dict[str, float | None] = {}
        for split, evaluation in self.evaluations.items():
            values: dict[str, float | None] = dict(evaluation.metrics)
            if isinstance(evaluation, Evaluation):
                low, high = evaluation.accuracy_interval
                values |= {"accuracy_low": low, "accuracy_high": high}
            metrics |= {f"final/{split}/{name}": value for name, value in values.items()}
        return metrics


@dataclass(frozen=True, slots=True)
class Interruption:
    """End of the training of a run before its last step.

    Attributes:
        is_resumable: Whether everything is saved and the run will continue.
        is_preempted: Whether a scheduler or the machine stopped it, rather than the user.
        exit_code: Exit code that the process is expected to have.
        checkpoint_path: Checkpoint of the best model so far; None without one.
    """

    is_resumable: bool
    is_preempted: bool = False
    exit_code: int = 1
    checkpoint_path: Path | None = None
