"""Out-of-fold predictions: each image by the fine-tuned network that has not trained on it."""

from collections.abc import Mapping, Sequence
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
from finetune.errors import RunFolderError
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Evaluation, Sample, Split
from finetune.units import format_count, format_csv


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """Class probabilities of the images that folds hold out, calibrated by their own fold.

    Attributes:
        samples: Images, in manifest order, shape (N,).
        folds: Fold of each, from 1, shape (N,).
        classes: Class names in index order, K of them.
        target: Class index of each, int64, shape (N,).
        probabilities: Class probabilities, float32, shape (N, K); rows sum to 1.
    """

    samples: Sequence[Sample]
    folds: NDArray[np.int64]
    classes: tuple[str, ...]
    target: Tensor
    probabilities: Tensor

    def evaluate(self, train_counts: Sequence[int]) -> Evaluation:
        """Return the evaluation of all images together.

        Args:
            train_counts: Images of each class, shape (K,).
        """
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
        """Return CSV of path,label,fold,predicted and the probability of each class."""
        header = ("path", "label", "fold", "predicted", *(f"p {name}" for name in self.classes))
        predicted = self.probabilities.argmax(dim=1).tolist()
        rows = (
            (
                sample.path,
                sample.label,
                fold,
                self.classes[index],
                *(f"{value:.6f}" for value in row),
            )
            for sample, fold, index, row in zip(
                self.samples,
                self.folds.tolist(),
                predicted,
                self.probabilities.tolist(),
                strict=True,
            )
        )
        return format_csv(header, rows)


def read_out_of_fold(cross_validation: CrossValidation) -> OutOfFold:
    """Return the predictions of all images that complete folds hold out.

    Raises:
        RunFolderError: A fold has no predictions, or others than its images.
    """
    manifest = cross_validation.manifest
    num_classes = len(manifest.classes)
    folds = cross_validation.folds
    probabilities = torch.zeros(len(folds), num_classes)
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
        probabilities[torch.from_numpy(rows)] = held_out
    is_held_out = np.flatnonzero(folds > 0)
    samples = [cross_validation.samples[row] for row in is_held_out.tolist()]
    return OutOfFold(
        samples,
        folds[is_held_out],
        manifest.classes,
        torch.tensor(manifest.encode_labels(samples)),
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
) -> str:
    """Return the line on label errors that the folds have found.

    Args:
        label_errors: The errors, the most likely one first.
        label_check: Accuracy of the folds.
        run: Run folder whose audit lists them; None if it does not.
    """
    worst = label_errors[0]
    more = ", and more" if len(label_errors) > 1 else ""
    where = "" if run is None else f"; see {run.audit_csv_path}"
    trust = describe_label_check(
        None if label_check is None else label_check.to_json(), judges="folds"
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
