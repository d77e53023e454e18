"""Records and the reporter interface that all layers share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from finetune.read_options import DEFAULT_READ_OPTIONS as DEFAULT_READ_OPTIONS
from finetune.read_options import PixelRange as PixelRange
from finetune.read_options import ReadOptions as ReadOptions

StrPath = str | os.PathLike[str]
"""Path of a file or folder, as the public functions accept it."""


class Split(StrEnum):
    """Part of the data that an image belongs to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Tta(StrEnum):
    """Views of an image whose probabilities are averaged (test-time augmentation)."""

    NONE = "none"
    HFLIP = "hflip"
    CROPS = "crops"
    CROPS10 = "crops10"
    SIZES = "sizes"


@dataclass(frozen=True, slots=True)
class Sample:
    """Labelled image on disk.

    Attributes:
        path: POSIX path relative to the data root (absolute when it lies outside).
        label: Class name, Unicode NFC; of a multi-label image its label names in one text.
        split: Split given by the folder or CSV, or None.
        group: Id of a group that an automatic split keeps together; "" for none.
        duplicate_group: Id that all duplicates of an image share; "" for an image without any.
        digest: Digest of the file's bytes, hexadecimal; "" if it is not known.
        labels: Sorted label names of a multi-label image, any number of them; None for an image
            of one class.
    """

    path: str
    label: str
    split: Split | None = None
    group: str = ""
    duplicate_group: str = ""
    digest: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes: one, or any number of a multi-label image."""
        return (self.label,) if self.labels is None else self.labels


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """Form in which the labels of a table are written.

    Attributes:
        task: "single_label", "multi_label", or "auto" for what the columns of the table say.
        columns: Columns of 0 and 1, one for each label; empty for a column of label names.
        separator: Text between the label names of an image.
        known: Labels of a model, whose columns are those of labels in data other than its own;
            empty for data that a model is trained on.
    """

    task: str = "auto"
    columns: tuple[str, ...] = ()
    separator: str = "|"
    known: tuple[str, ...] = ()


DEFAULT_LABEL_FORMAT = LabelFormat()


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """File that was left out, with the reason."""

    path: str
    reason: str


class Draw(NamedTuple):
    """Draw of the training sampler: everything but the seed that the augmentation depends on.

    Attributes:
        row: Row of the image in the dataset.
        epoch: Epoch of the draw, from 0.
        repeat: Number of earlier draws of this image in the same epoch.
    """

    row: int
    epoch: int
    repeat: int


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """Preprocessing from pixels to the network's input; stored with the weights.

    Attributes:
        input_size: Channels, height, width.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        interpolation: Kernel, "nearest", "bilinear", "bicubic", "lanczos" …; always antialiased.
        crop_pct: Fraction of the resized side that the centre crop keeps, in (0, 1].
        crop_mode: Crop mode, "center", "squash" or "border", as timm defines them.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Part of the backbone that was really loaded from the given weights.

    Attributes:
        source: File, folder or hub name; "random" for none.
        num_loaded: Number of backbone parameters that the source filled.
        num_parameters: Number of all backbone parameters.
        missing_keys: Names of the parameters and buffers that the source did not fill.
        unexpected_keys: Names and sizes of tensors of the source that the network does not have.
    """

    source: str
    num_loaded: int
    num_parameters: int
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: Mapping[str, int] = field(default_factory=dict)

    @property
    def loaded_fraction(self) -> float:
        """Fraction of the backbone's parameters that were loaded, in [0, 1]."""
        return self.num_loaded / max(1, self.num_parameters)


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive epochs with the same unfreeze depth.

    Attributes:
        first_epoch: First epoch, counted from 0.
        last_epoch: Last epoch, inclusive.
        depth: Number of trainable layer groups, counted from the head.
    """

    first_epoch: int
    last_epoch: int
    depth: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdict on whether the answer for an image is rejected.

    Attributes:
        reason: Why it is rejected; "" for an answer that is not.
        distance: Distance to the training images in the space of features, in [0, 2].
    """

    reason: str
    distance: float

    @property
    def is_rejected(self) -> bool:
        """Whether the answer is rejected."""
        return bool(self.reason)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "rejected": self.is_rejected,
            "reason": self.reason or None,
            "distance": self.distance,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted classes of one image, most probable first.

    Attributes:
        path: Path of the image as the caller gave it.
        labels: Class names.
        probabilities: Class probabilities in [0, 1], in the order of ``labels``.
        all_probabilities: Probability of every class, in class order, for a multi-label model or on
            request; else None.
        judgement: Whether the answer is rejected; None without ``--reject``.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    all_probabilities: tuple[float, ...] | None = None
    judgement: Judgement | None = None


@dataclass(frozen=True, slots=True)
class ClassStats:
    """Statistics of one class in an evaluation; None for undefined ones.

    Attributes:
        name: Class name.
        support: Number of images of this class.
        num_predicted: Number of images predicted as this class.
        precision: Correct fraction of ``num_predicted``; None if the class was never predicted.
        recall: Correct fraction of ``support``; None without images of the class.
        f1: Harmonic mean of both; None if the class is neither present nor predicted.
        recall_interval: 95% confidence interval of the recall; None if it is undefined.
        train_images: Number of training images of the class; None if unknown.
    """

    name: str
    support: int
    num_predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    recall_interval: tuple[float, float] | None = None
    train_images: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of evaluating a model on labelled images.

    Attributes:
        num_images: Number of evaluated images, each counted once.
        metrics: Metric name to value: loss, accuracy, balanced_accuracy, macro_f1,
            rarest_third_recall where classes are rarer than others and, with more than five
            classes, top5_accuracy.
        per_class: Statistics of each class, in class order.
        confusion_matrix: Counts, shape (K, K); rows are true classes, columns predicted ones.
        accuracy_interval: 95% confidence interval of the accuracy.
        rarest_classes: Classes whose mean recall is ``rarest_third_recall``, the rarest first.
        undefined_metrics: Names of the metrics that these images do not define; not in ``metrics``.
    """

    num_images: int
    metrics: Mapping[str, float]
    per_class: tuple[ClassStats, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    accuracy_interval: tuple[float, float]
    rarest_classes: tuple[str, ...]
    undefined_metrics: tuple[str, ...] = ()


class Reporter:
    """Interface for the progress and messages of a command; this base class ignores them all."""

    def note(self, message: str) -> None:
        """Show an informational message."""

    def warn(self, message: str) -> None:
        """Show a message that the user should act on."""

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Show the plan of a run before it starts."""

    def show_layers(self, layers: Mapping[str, Any]) -> None:
        """Show the costs of the layers of a run."""

    def start(self, task: str, total: int) -> None:
        """Start a progress bar named ``task`` with ``total`` steps."""

    def advance(self, steps: int = 1) -> None:
        """Advance the current progress bar by ``steps``."""

    def finish(self) -> None:
        """Close the current progress bar."""

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Show the result of the linear probe."""

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished epoch."""


SCORE_LOSSES = ("hinge", "squared_hinge")
"""Losses whose logits are scores of no class prior: only a temperature makes them probabilities."""
