"""Out-of-fold predictions: each image by the fine-tuned network that has not trained on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.audit.label_errors import (
    LabelCheck,
    LabelErrorCandidate,
    collect_label_errors,
    describe_label_check,
    measure_label_check,
)
from finetune.audit.report import merge_findings
from finetune.commands.cross_validation.fold_runs import CrossValidation
from finetune.commands.report.run_files import build_predictions
from finetune.data.manifest import Manifest
from finetune.errors import RunFolderError
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.multi_label.label_folds import (
    choose_fold_thresholds,
    evaluate_label_folds,
)
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds
from finetune.inference.scoring import AnyEvaluation
from finetune.report.label_metrics_intervals import compute_label_intervals
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Sample, Split
from finetune.units import format_count, format_csv


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """Class probabilities of the images that folds hold out, calibrated by their own fold.

    Attributes:
        samples: Images, in manifest order, shape (N,).
        folds: Fold of each, from 1, shape (N,).
        classes: Class names in index order, K of them.
        target: Class index of each, int64, shape (N,); of multi-label images 1 for each of their
            labels, else 0, shape (N, K).
        probabilities: Class probabilities, shape (N, K), float32, whose rows sum to 1; of each
            label, float64, for multi-label images.
    """

    samples: Sequence[Sample]
    folds: NDArray[np.int64]
    classes: tuple[str, ...]
    target: Tensor
    probabilities: Tensor

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.target.ndim == 2

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Threshold of each label, chosen on all images, shape (K,); None for one class each."""
        return choose_thresholds(self.probabilities, self.target) if self.is_multi_label else None

    @property
    def image_thresholds(self) -> NDArray[np.float64]:
        """Threshold of each label of each image, chosen on the images of other folds, (N, K)."""
        return choose_fold_thresholds(self.probabilities, self.target, self.folds)

    def evaluate(self, train_counts: Sequence[int]) -> AnyEvaluation:
        """Return the evaluation of all images together.

        Labels are predicted at thresholds that were chosen on the images of other folds.

        Args:
            train_counts: Images of each class, shape (K,).
        """
        if self.is_multi_label:
            return evaluate_labels(
                self.probabilities,
                self.target,
                classes=self.classes,
                thresholds=self.thresholds,
                train_counts=train_counts,
                image_thresholds_NK=self.image_thresholds,
            )
        return evaluate_probabilities(
            self.probabilities, self.target, classes=self.classes, train_counts=train_counts
        )

    def find_label_errors(self) -> tuple[LabelErrorCandidate, ...]:
        """Return the images whose labels are probably wrong, the most likely errors first."""
        return collect_label_errors(self.samples, self.classes, self.probabilities.numpy())

    def check_labels(self) -> LabelCheck | None:
        """Return how often the folds predict the labels as given."""
        return measure_label_check(self.samples, self.classes, self.probabilities.numpy())

    def to_csv(self) -> str:
        """Return CSV of path,label,fold,predicted and the probability of each class.

        Of multi-label images the column of labels is ``labels``; several are divided by "|".
        """
        label = "labels" if self.is_multi_label else "label"
        header = ("path", label, "fold", "predicted", *(f"p {name}" for name in self.classes))
        # the log loss of a label needs more digits than a probability that is read by people
        number = ".12g" if self.is_multi_label else ".6f"
        rows = (
            (
                sample.path,
                "|".join(sample.class_names),
                fold,
                predicted,
                *(format(value, number) for value in row),
            )
            for sample, fold, predicted, row in zip(
                self.samples,
                self.folds.tolist(),
                self._list_predicted(),
                self.probabilities.tolist(),
                strict=True,
            )
        )
        return format_csv(header, rows)

    def evaluate_folds(self) -> list[AnyEvaluation] | None:
        """Return the evaluation of each fold at thresholds of the others; None for one class each.

        A fold's own evaluation has thresholds that its images chose.
        """
        if not self.is_multi_label:
            return None
        return [
            *evaluate_label_folds(self.probabilities, self.target, self.folds, classes=self.classes)
        ]

    def measure_intervals(self, manifest: Manifest) -> Mapping[str, tuple[float, float]]:
        """Return the 95% interval of each metric of all multi-label images, by a bootstrap.

        Empty where there are too few images of a label, or one class for each image.

        Args:
            manifest: Manifest of the images.
        """
        if not self.is_multi_label:
            return {}
        predictions = build_predictions(manifest, list(self.samples), self.probabilities.numpy())
        return compute_label_intervals(predictions, self.image_thresholds)

    def _list_predicted(self) -> Iterator[str]:
        """Yield the predicted class of each image, or its labels, as ``evaluate`` counts them."""
        if not self.is_multi_label:
            yield from (self.classes[index] for index in self.probabilities.argmax(dim=1).tolist())
            return
        for flags in self.probabilities.numpy() >= self.image_thresholds:
            yield "|".join(self.classes[index] for index in np.flatnonzero(flags).tolist())


def read_out_of_fold(cross_validation: CrossValidation) -> OutOfFold:
    """Return the predictions of all images that complete folds hold out.

    Raises:
        RunFolderError: A fold has no predictions, or others than its images.
    """
    manifest = cross_validation.manifest
    num_classes = len(manifest.classes)
    folds = cross_validation.folds
    dtype = torch.float64 if manifest.is_multi_label else torch.float32
    probabilities = torch.zeros(len(folds), num_classes, dtype=dtype)
    for fold in range(1, cross_validation.num_folds + 1):
        rows = np.flatnonzero(folds == fold)
        path = find_predictions(cross_validation.get_fold_run(fold))
        held_out = _read_held_out(path)
        if held_out.shape != (len(rows), num_classes):
            raise RunFolderError(
                f"{path} has predictions of "
                f"{len(held_out)} images, and its fold holds out {len(rows)}. Remove the folder "
                f"of the fold and resume the run."
            )
        probabilities[torch.from_numpy(rows)] = held_out.to(dtype)
    is_held_out = np.flatnonzero(folds > 0)
    samples = [cross_validation.samples[row] for row in is_held_out.tolist()]
    return OutOfFold(
        samples,
        folds[is_held_out],
        manifest.classes,
        torch.from_numpy(manifest.encode_targets(samples)),
        probabilities[torch.from_numpy(is_held_out)],
    )


def write_findings(
    cross_validation: CrossValidation,
    label_errors: Sequence[LabelErrorCandidate],
    label_check: LabelCheck | None,
) -> bool:
    """Replace the label errors in the audit of the run; return whether ``audit.csv`` has them."""
    run = cross_validation.run
    try:
        audit, findings = merge_findings(
            run.audit_json_path.read_text(encoding="utf-8"),
            label_errors=label_errors,
            duplicates=[],
            label_check=label_check,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing, damaged or of a later version
    write_text(run.audit_json_path, audit)
    if not run.audit_csv_path.is_file():  # the user deleted it; do not recreate it
        return False
    write_text(run.audit_csv_path, findings)
    return True


def describe_label_errors(
    label_errors: Sequence[LabelErrorCandidate],
    label_check: LabelCheck | None,
    run: RunFolder | None,
    *,
    is_multi_label: bool,
) -> str:
    """Return the line on label errors that the folds have found.

    Args:
        label_errors: The errors, the most likely one first.
        label_check: Accuracy of the folds.
        run: Run folder whose audit lists them; None if it does not.
        is_multi_label: Whether an image has any number of labels.
    """
    worst = label_errors[0]
    more = ", and more" if len(label_errors) > 1 else ""
    where = "" if run is None else f"; see {run.audit_csv_path}"
    trust = describe_label_check(
        None if label_check is None else label_check.to_json(),
        judges="folds",
        is_multi_label=is_multi_label,
    )
    return (
        f"{format_count(len(label_errors), 'possible label error')}, by {trust}: {worst.path} is "
        f"labelled '{worst.label}' (p={worst.label_probability:.2f}), predicted "
        f"'{worst.predicted_label}' (p={worst.predicted_probability:.2f}){more}{where}"
    )


def count_images(cross_validation: CrossValidation) -> Mapping[str, Any]:
    """Return the number of images of each class that the folds divide."""
    counts = cross_validation.manifest.count_per_class(Split.TRAIN)
    return dict(zip(cross_validation.manifest.classes, counts, strict=True))


def find_predictions(run: RunFolder) -> Path:
    """Return the file of the probabilities of a fold's validation images, also of an older run."""
    path = run.get_predictions_path(Split.VAL)
    return run.held_out_path if run.held_out_path.is_file() and not path.is_file() else path


def _read_held_out(path: Path) -> Tensor:
    """Return the probabilities of the validation images of a fold, shape (N, K).

    Raises:
        RunFolderError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            return torch.from_numpy(stored["probabilities"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise RunFolderError(
            f"{path} is missing or damaged ({error}). Remove the folder of its fold and resume the "
            f"run, which trains that fold again."
        ) from error
