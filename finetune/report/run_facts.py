"""Facts of a run that its report shows, as plain values; a run lacks some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.report.photos.photo_facts import PhotoFacts

Row = Mapping[str, float]
"""Row of ``metrics.csv``: value by column; columns that are empty are missing."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitPredictions:
    """Predictions of the final model for the images of a split, in manifest order.

    Attributes:
        paths: Path of each image relative to the data folder, N of them.
        digests: Hash of the bytes of each file; empty where it is unknown.
        groups: Number of the group of dependent images of each image, shape (N,).
        target: Class index of each image, shape (N,), or 1 for each of its labels, shape (N, K).
        probabilities: Class probabilities, shape (N, K).
        thresholds: Probability from which each label of each image is predicted, shape (N, K), in
            place of the thresholds of the model; None for these, and for one class of each image.
    """

    paths: Sequence[str]
    digests: Sequence[str]
    groups: NDArray[np.int64]
    target: NDArray[Any]
    probabilities: NDArray[np.float64]
    thresholds: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunFacts:
    """Facts of a run, or of a bundle without its run.

    Attributes:
        name: Name of the run: that of its folder.
        path: Path of the run, as commands take it.
        config: Resolved config, value by dotted key; empty for a bundle.
        defaults: Value by dotted key of the keys that the config leaves at their default.
        card: Content of the bundle's ``finetune.json``, with present names of facts.
        classes: Class names in index order.
        class_counts: Images of each class by split, in class order.
        num_images: Number of images by split.
        rows: Rows of ``metrics.csv`` in order; epoch 0 is the linear probe.
        measured: Value and reason of each setting that the run has measured, by dotted key.
        audit: Audit of the dataset, with present names of keys; None without one.
        rejected: Path and reason of the files that were left out.
        findings: Findings of the diagnosis as JSON values, in their order; None without one.
        network: Statistics of the network as JSON values; None without any.
        predictions: Predictions of the final model by split; of a cross-validation "out_of_fold".
        folds: Summary of a cross-validation; None for a run with one split.
        fold_rows: Rows of ``metrics.csv`` of each fold, by its number.
        members: Network and weight of each member of an ensemble.
        input_sizes: Channels, height and width of the input of each network of the bundle.
        chosen_split: Split that the page is about; None for the best one that there is.
        photos: Pictures; None for a page without any.
        sessions: What is known of each process that trained the run, see ``SessionRecorder``; of a
            cross-validation, that which prepared it, then those of its folds.
    """

    name: str
    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    class_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_images: Mapping[str, int] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    rejected: Sequence[tuple[str, str]] = ()
    findings: Sequence[Mapping[str, Any]] | None = None
    network: Mapping[str, Any] | None = None
    predictions: Mapping[str, SplitPredictions] = field(default_factory=dict)
    folds: Mapping[str, Any] | None = None
    fold_rows: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    members: Sequence[tuple[str, float]] = ()
    input_sizes: Sequence[tuple[int, ...]] = ()
    sessions: Sequence[Mapping[str, Any]] = ()
    chosen_split: str | None = None
    photos: PhotoFacts | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the model card; empty while there is no bundle."""
        facts: Mapping[str, Any] = self.card.get("facts") or {}
        return facts

    def find_session_value(self, key: str) -> Any:
        """Return a value of the first session that has it; None without one.

        A resumed process does not know the command and the reasons that the run began with.
        """
        return next((session[key] for session in self.sessions if session.get(key)), None)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        evaluations = self.facts.get("evaluations") or {}
        has_labels = any("per_label" in evaluation for evaluation in evaluations.values())
        return has_labels or self.card.get("thresholds") is not None

    @property
    def monitor(self) -> str:
        """Metric that the run is judged by."""
        default = "mean_average_precision" if self.is_multi_label else "accuracy"
        monitor = self.config.get("trainer.monitor", default)
        return default if monitor in (None, "auto") else str(monitor)
