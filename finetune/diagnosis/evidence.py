"""Numbers of a run that the rules of the diagnosis stand on.

An older run, a fold or a damaged file lacks some of them: they are None or empty then, and the
rules that need them find nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.diagnosis.divergence_error import Divergence
from finetune.diagnosis.label_noise import LabelNoise


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """Row of ``metrics.csv``.

    Attributes:
        epoch: Epoch, counted from 1; 0 is the linear probe.
        train_loss: Mean loss that was optimized: of augmented images, maybe smoothed.
        train_eval: Metrics of a sample of the training images, measured as those of validation.
        val: Metrics of the validation images.
        learning_rates: Learning rate of each layer group at the end of the epoch; 0 if frozen.
        grad_norms: Mean gradient norm of each layer group that trained.
        weight_changes: Change of the weights over the epoch relative to their norm, by group.
    """

    epoch: int
    train_loss: float | None = None
    train_eval: Mapping[str, float] = field(default_factory=dict)
    val: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    weight_changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def val_accuracy(self) -> float | None:
        """Fraction of the validation images that are right; of multi-label images in all labels."""
        return self.val.get("accuracy", self.val.get("subset_accuracy"))

    @property
    def train_accuracy(self) -> float | None:
        """The same fraction of the measured training images."""
        return self.train_eval.get("accuracy", self.train_eval.get("subset_accuracy"))

    @property
    def accuracy_name(self) -> str:
        """What ``val_accuracy`` is called."""
        return "accuracy" if "accuracy" in self.val else "subset accuracy"

    @property
    def trained_groups(self) -> frozenset[str]:
        """Layer groups with a learning rate above 0."""
        return frozenset(name for name, rate in self.learning_rates.items() if rate > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Course of a run.

    Attributes:
        probe: Row of the linear probe; None without one.
        epochs: Rows of the epochs, in order.
        best_epoch: Epoch of the best model; 0 is the linear probe. None if it is unknown.
        num_planned_epochs: Number of epochs that the run was to have; None if it is unknown.
        is_stopped_early: Whether early stopping ended it.
        is_mixed: Whether the final model is not that of an epoch but between epochs, as a mean or
            an interpolation of weights.
    """

    probe: EpochRow | None = None
    epochs: tuple[EpochRow, ...] = ()
    best_epoch: int | None = None
    num_planned_epochs: int | None = None
    is_stopped_early: bool = False
    is_mixed: bool = False

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """All rows, that of the probe first."""
        return self.epochs if self.probe is None else (self.probe, *self.epochs)

    @property
    def best_row(self) -> EpochRow | None:
        """Row of the best epoch, or of the probe; None if it is unknown."""
        return next((row for row in self.rows if row.epoch == self.best_epoch), None)

    @property
    def phase_starts(self) -> tuple[EpochRow, ...]:
        """Rows of the epochs in which further layer groups began to train, but for the first."""
        pairs = zip(self.epochs, self.epochs[1:], strict=False)
        return tuple(row for before, row in pairs if row.trained_groups > before.trained_groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """Validation images of a class, or with a label.

    Attributes:
        name: Name of the class.
        train_images: Number of its training images; None if unknown.
        support: Number of its validation images.
        num_predicted: Number of validation images that are predicted as it.
        num_correct: Number of those that are of it.
        average_precision: Average precision of a label; None for classes.
        noise: Estimate of the fraction of images of which a label is wrong; None for classes.
    """

    name: str
    train_images: int | None
    support: int
    num_predicted: int
    num_correct: int
    average_precision: float | None = None
    noise: LabelNoise | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationEvidence:
    """Final model on the validation images.

    Attributes:
        num_images: Number of images.
        num_correct: Number of correct ones; None for multi-label images.
        metrics: Metrics by name.
        classes: Classes, or labels, in index order.
        confusion: Number of images by true and predicted class; empty if unknown.
        loss_deviation: Standard deviation of the log losses of the images; None if unknown.
        label_noise: Estimate of the fraction of wrong labels; None if there is none to be had.
        mistakes: Predicted class of the images that are wrong by their path, the image with the
            least probable label first; of multi-label images the label that is wrong most surely.
        accuracy_without_leaks: Accuracy without leaked images; None without any.
    """

    num_images: int
    num_correct: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    loss_deviation: float | None = None
    label_noise: LabelNoise | None = None
    mistakes: Mapping[str, str] = field(default_factory=dict)
    accuracy_without_leaks: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """Likely label error of the audit, by heads that were fitted without the image.

    Attributes:
        path: Path of the image.
        label: Its label.
        predicted_label: Class that it probably belongs to.
        label_probability: Probability of the label.
    """

    path: str
    label: str
    predicted_label: str
    label_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEvidence:
    """Images of a run.

    Attributes:
        classes: Class names in index order.
        train_counts: Training images of each class.
        num_train: Number of training images.
        num_val: Number of validation images.
        num_train_eval: Number of training images that are measured as validation is.
        num_leaked: Number of validation images with a duplicate in the training images.
        leaked_example: Path of one of them.
        num_conflicting: Number of images with a duplicate of another class.
        conflicting_example: Paths of two of them.
        label_errors: Likely label errors; None if they were not searched.
        num_checked: Number of images that label errors were searched in; 0 if it is unknown.
        check_accuracy: Fraction of them that the heads of the search predict as labelled.
        is_multi_label: Whether an image has any number of labels.
    """

    classes: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_train_eval: int = 0
    num_leaked: int = 0
    leaked_example: str = ""
    num_conflicting: int = 0
    conflicting_example: tuple[str, ...] = ()
    label_errors: tuple[LabelError, ...] | None = None
    num_checked: int = 0
    check_accuracy: float | None = None
    is_multi_label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """Activations of a layer on a sample of images; None where they are not measured.

    Attributes:
        name: Layer.
        units: Number of units, such as channels.
        dead: Fraction of units that are zero for all images.
        saturated: Fraction of units at the flat end of their activation.
        correlated_pairs: Fraction of pairs of units with a correlation above 0.9.
        std: Standard deviation of the activations.
    """

    name: str
    units: int | None = None
    dead: float | None = None
    saturated: float | None = None
    correlated_pairs: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of a layer; None where they are not measured.

    Attributes:
        name: Layer.
        group: Its layer group.
        relative_change: Norm of the change from the start to the final model relative to the norm.
        relative_gradient: Norm of the gradient relative to that of the weights.
    """

    name: str
    group: str
    relative_change: float | None = None
    relative_gradient: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvidence:
    """Layers before and after training.

    Attributes:
        before: Layers with the weights at the start.
        after: Layers of the final model.
        weights: Weights of the layers, from the input to the output.
        num_images: Number of images that were measured; None if unknown.
    """

    before: tuple[LayerHealth, ...] = ()
    after: tuple[LayerHealth, ...] = ()
    weights: tuple[LayerWeights, ...] = ()
    num_images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvidence:
    """Heads on the features of the frozen backbone, judged on images that they do not know.

    Attributes:
        last: Name of the last stage.
        last_accuracy: Accuracy of the head on its features.
        earlier: Name of the best earlier stage.
        earlier_accuracy: Accuracy of the head on its features.
        loss_difference: Log loss of the last stage minus that of the earlier one, on the same
            images.
        standard_error: Standard error of this difference.
    """

    last: str
    last_accuracy: float
    earlier: str
    earlier_accuracy: float
    loss_difference: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvidence:
    """All numbers of a run.

    Attributes:
        curves: Course of the run.
        validation: Final model on the validation images; None without any.
        data: Images.
        network: Layers; None if they were not measured.
        stages: Heads on earlier stages; None if there are none.
        settings: Value of each setting by dotted key.
        measured: Settings that the run has measured.
        divergence: Where training diverged; None for a run that did not.
    """

    curves: Curves = field(default_factory=Curves)
    validation: ValidationEvidence | None = None
    data: DataEvidence = field(default_factory=DataEvidence)
    network: NetworkEvidence | None = None
    stages: StageEvidence | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: frozenset[str] = frozenset()
    divergence: Divergence | None = None
