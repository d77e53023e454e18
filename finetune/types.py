"""The words that all floors share: small frozen records without behaviour of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Split(StrEnum):
    """Which part of the data an image belongs to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image as it was found on disk.

    Attributes:
        path: POSIX path relative to the data root (absolute when it lies outside).
        label: Class name, Unicode NFC.
        split: The split that the folder or CSV gives, or None.
        group: Images of one group stay on one side of an automatic split; "" is no group.
        duplicate_group: Images that show the same have the same word here; "" is none.
    """

    path: str
    label: str
    split: Split | None = None
    group: str = ""
    duplicate_group: str = ""


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that was left out, and why."""

    path: str
    reason: str


class Draw(NamedTuple):
    """One draw of the training sampler: everything that the augmentation depends on but the seed.

    Attributes:
        row: Row of the image in the dataset.
        epoch: Epoch of the draw.
        repeat: How often this image was drawn before in the same epoch.
    """

    row: int
    epoch: int
    repeat: int


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How pixels become the network's input; travels with the weights.

    Attributes:
        input_size: Channels, height, width.
        mean: Per channel, for pixels in [0, 1].
        std: Per channel, for pixels in [0, 1].
        interpolation: "nearest", "bilinear", "bicubic", "lanczos" …, always antialiased.
        crop_pct: Share of the resized image that the centre crop keeps, in (0, 1].
        crop_mode: "center", "squash" or "border", as timm defines them.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How much of the backbone really came from the given weights.

    Attributes:
        source: File, folder or hub name; "random" for none.
        num_loaded: Backbone parameters that the source filled.
        num_parameters: All backbone parameters.
        missing_keys: Names of the parameters and statistics that it did not fill.
        unexpected_keys: Names and sizes of tensors in it that the network has no place for.
    """

    source: str
    num_loaded: int
    num_parameters: int
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: Mapping[str, int] = field(default_factory=dict)

    @property
    def loaded_fraction(self) -> float:
        """Share of the backbone's parameters that were loaded, in [0, 1]."""
        return self.num_loaded / max(1, self.num_parameters)


@dataclass(frozen=True, slots=True)
class Phase:
    """A run of epochs with the same unfreeze depth.

    Attributes:
        first_epoch: First epoch, counted from 0.
        last_epoch: Last epoch, included.
        depth: How many layer groups train, counted from the head.
    """

    first_epoch: int
    last_epoch: int
    depth: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classes of one image, most probable first.

    Attributes:
        path: The image as it was named.
        labels: Class names.
        probabilities: In [0, 1], in the order of ``labels``.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ClassStats:
    """One class in an evaluation; None where the number is undefined.

    Attributes:
        name: Class name.
        support: Images of this class.
        num_predicted: Images that were given this class.
        precision: Share of ``num_predicted`` that are right; None where nothing was predicted.
        recall: Share of ``support`` that was found; None where there is no such image.
        f1: Harmonic mean; None where the class is neither present nor predicted.
        recall_interval: 95% confidence interval of the recall; None where that is undefined.
        train_images: What the model was trained on; None where that is not known.
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
    """What a model does on a set of labelled images.

    Attributes:
        num_images: Images that were evaluated, each once.
        metrics: Name to value: loss, accuracy, balanced_accuracy, macro_f1, rarest_third_recall
            and, with more than five classes, top5_accuracy.
        per_class: One entry a class, in class order.
        confusion_matrix: Counts, rows are true classes, columns predicted ones.
        accuracy_interval: 95% confidence interval of the accuracy.
        rarest_classes: The classes whose mean recall is ``rarest_third_recall``, the rarest first.
        undefined_metrics: Names that ``metrics`` lacks, since these images do not define them.
    """

    num_images: int
    metrics: Mapping[str, float]
    per_class: tuple[ClassStats, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    accuracy_interval: tuple[float, float]
    rarest_classes: tuple[str, ...]
    undefined_metrics: tuple[str, ...] = ()


class Reporter:
    """What a command tells whoever watches it. This one says nothing; subclasses show it."""

    def note(self, message: str) -> None:
        """Say one thing worth reading."""

    def warn(self, message: str) -> None:
        """Say one thing that the user should act on."""

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Show what is about to happen."""

    def start(self, task: str, total: int) -> None:
        """Begin a task of ``total`` steps."""

    def advance(self, steps: int = 1) -> None:
        """Go on by some steps of the current task."""

    def finish(self) -> None:
        """End the current task."""

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Show what the head of the frozen backbone came to."""

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of one finished epoch."""
