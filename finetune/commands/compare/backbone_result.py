"""Result of one backbone of a comparison: its cost, and the metrics of its probe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.commands.compare.imagenet_reference import find_imagenet_error_rates
from finetune.commands.compare.label_precision import LabelPrecision
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.evaluation.significance import compute_mcnemar_p_value, compute_wilson_interval
from finetune.probe.stage_probes import StageProbes


@dataclass(frozen=True, slots=True)
class BackboneResult:
    """Cost and probe metrics of one backbone.

    Attributes:
        backbone: timm name.
        weights: Value for ``--weights`` of ``fit``: "hub", or a file or folder.
        image_size: Side of the input in pixels.
        num_parameters: Number of parameters, including the new classifier.
        num_macs: Multiply-accumulate operations of one forward pass on one image.
        images_per_second: Inference throughput on this machine, without reading images.
        training_bytes: Memory of a training step of all layers; None if it does not fit.
        batch_size: Micro-batch size of that training step.
        monitor: Metric by which ``fit`` would choose its best epoch.
        metrics: Metric name to value on the validation images.
        is_correct: Whether each validation image is classified correctly, with all of its labels,
            bool, shape (N,).
        num_images: Number of training and validation images.
        num_computed: Number of these whose features were computed, not read from the cache.
        seconds: Total duration.
        stages: Results of heads on earlier stages; None where none were probed.
        precision: Mean average precision of multi-label images, with its resamples; None for
            images of one class.
    """

    backbone: str
    weights: str
    image_size: int
    num_parameters: int
    num_macs: int
    images_per_second: float
    training_bytes: int | None
    batch_size: int
    monitor: str
    metrics: Mapping[str, float]
    is_correct: NDArray[np.bool_] = field(repr=False, compare=False)
    num_images: int
    num_computed: int
    seconds: float
    stages: StageProbes | None = field(default=None, repr=False)
    precision: LabelPrecision | None = field(default=None, repr=False, compare=False)

    @property
    def compared_metric(self) -> str:
        """Metric by which differences are judged."""
        return "accuracy" if self.precision is None else MEAN_AVERAGE_PRECISION

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of that metric: Wilson's, or that of ``LabelPrecision``."""
        if self.precision is not None:
            return self.precision.interval
        return compute_wilson_interval(int(self.is_correct.sum()), len(self.is_correct))

    @property
    def compared_value(self) -> float:
        """Value of that metric."""
        return float(self.is_correct.mean()) if self.precision is None else self.precision.value

    def compute_p_value(self, other: "BackboneResult") -> float:
        """Compute the p-value of the difference from another backbone on the same images."""
        if self.precision is None or other.precision is None:
            return compute_mcnemar_p_value(self.is_correct, other.is_correct)
        return self.precision.compute_p_value(other.precision)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        published = find_imagenet_error_rates(self.backbone, weights=self.weights)
        num_bytes = self.training_bytes
        return {
            "backbone": self.backbone,
            "weights": self.weights,
            "image_size": self.image_size,
            "num_parameters": self.num_parameters,
            "gmacs": round(self.num_macs / 1e9, 4),
            "images_per_second": round(self.images_per_second, 2),
            "training_memory_gb": None if num_bytes is None else round(num_bytes / 1e9, 9),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            f"{self.compared_metric}_interval": list(self.interval),
            "imagenet_top1_error": None if published is None else published.top1,
            "imagenet_top5_error": None if published is None else published.top5,
            "imagenet_source": None if published is None else published.source,
            "imagenet_is_of_weights": None if published is None else published.is_of_weights,
            "stages": None if self.stages is None else self.stages.to_json(),
            "num_images": self.num_images,
            "num_images_computed": self.num_computed,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class BackboneFailure:
    """A backbone that could not be compared.

    Attributes:
        backbone: timm name.
        reason: Error message, with the remedy if there is one.
        exit_code: Exit code of the error.
    """

    backbone: str
    reason: str
    exit_code: int
