"""Settings and result of a transfer experiment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.commands.demo.class_ranges import TransferClasses
from finetune.units import format_csv

DEFAULT_IMAGES_PER_CLASS = (10, 30, 100)
"""Training images per class of the target; all images follow."""


@dataclass(frozen=True, slots=True)
class TransferSpec:
    """Settings of a transfer experiment.

    Attributes:
        data: Folder or CSV of images.
        transfer: Classes, ``SOURCE:TARGET``.
        backbone: Network, ``model.backbone``.
        images_per_class: Training images per class of the target, ascending.
        settings: Further config of every run, by dotted key.
    """

    data: Path
    transfer: str
    backbone: str
    images_per_class: tuple[int, ...] = DEFAULT_IMAGES_PER_CLASS
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        tree = {**asdict(self), "data": str(self.data.resolve())}
        plain: dict[str, Any] = json.loads(json.dumps(tree))
        return plain

    @property
    def seed(self) -> int:
        """Seed of the selection of images, which is also that of the runs."""
        return int(self.settings.get("seed", 0))


@dataclass(frozen=True, slots=True)
class TransferRow:
    """Result of one run on the target classes.

    Attributes:
        method: Key of ``METHODS``.
        images_per_class: Training images per class, validation included; the largest class's for
            all images.
        num_images: Images of all classes, validation included.
        metrics: Test metrics by name.
        interval: 95% confidence interval of the test accuracy.
        seconds: Duration of the run.
        run_dir: Run folder.
    """

    method: str
    images_per_class: int
    num_images: int
    metrics: Mapping[str, float | None]
    interval: tuple[float, float]
    seconds: float
    run_dir: str


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Result of a transfer experiment.

    Attributes:
        folder: Folder of the runs, ``transfer.csv`` and ``transfer.svg``.
        classes: Classes of both tasks.
        rows: Result of each run on the target classes.
        num_test_images: Test images of the target classes.
        source_accuracy: Test accuracy of the backbone on the source classes.
        seconds: Total duration.
    """

    folder: Path
    classes: TransferClasses
    rows: Sequence[TransferRow]
    num_test_images: int
    source_accuracy: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "folder": str(self.folder),
            "source": list(self.classes.source),
            "target": list(self.classes.target),
            "source_accuracy": self.source_accuracy,
            "num_test_images": self.num_test_images,
            "rows": [asdict(row) for row in self.rows],
            "seconds": round(self.seconds, 3),
        }

    def format_table(self) -> str:
        """Return the table of the runs, with one column per metric."""
        names = list(self.rows[0].metrics)
        header = ("method", "images_per_class", "num_images", *names, "seconds", "run_dir")
        rows = [
            (
                row.method,
                row.images_per_class,
                row.num_images,
                *(row.metrics[name] for name in names),
                row.seconds,
                row.run_dir,
            )
            for row in self.rows
        ]
        return format_csv(header, rows)
