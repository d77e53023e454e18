"""Evidence of the final model on the validation images, from its predictions or its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.manifest import Manifest
from finetune.diagnosis.evidence import ClassRow, ValidationEvidence
from finetune.diagnosis.label_noise import estimate_label_noise, estimate_multi_label_noise
from finetune.report.run_facts import SplitPredictions
from finetune.types import Split

_EVEN = 0.5
_TINY = float(np.finfo(np.float32).tiny)

# shape suffixes: N images, K classes


def build_validation(
    predictions: SplitPredictions,
    manifest: Manifest,
    *,
    metrics: Mapping[str, float | None],
    details: Mapping[str, Any],
    accuracy_without_leaks: float | None,
    is_adjusted: bool,
) -> ValidationEvidence:
    """Return the evidence of predictions.

    Args:
        predictions: Probabilities and true classes of N images.
        manifest: Images of the run.
        metrics: Metrics of the final model; None for undefined ones.
        details: Statistics of its evaluation, as on the model card.
        accuracy_without_leaks: Accuracy without leaked images; None if there are none.
        is_adjusted: Whether the probabilities are for another class prior than that of the images,
            so that they do not tell wrong labels from frequent ones.
    """
    target, probabilities_NK = predictions.target, predictions.probabilities
    known = {name: value for name, value in metrics.items() if value is not None}
    counts = manifest.count_per_class(Split.TRAIN)
    if target.ndim == 2:
        p = np.clip(probabilities_NK, _TINY, 1 - 1e-7)
        losses_N = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(axis=1)
        noises = estimate_multi_label_noise(probabilities_NK, target > 0)
        noise_of = dict(zip(manifest.classes, noises, strict=True))
        labels = _parse_classes(details.get("per_label") or {})
        return ValidationEvidence(
            num_images=len(target),
            metrics=known,
            classes=tuple(replace(one, noise=noise_of.get(one.name)) for one in labels),
            loss_deviation=_compute_deviation(losses_N),
            mistakes=_find_label_mistakes(predictions, manifest.classes),
        )
    chosen_N = probabilities_NK[np.arange(len(target)), target]
    predicted_N = probabilities_NK.argmax(axis=1)
    num_classes = len(manifest.classes)
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion_KK, (target, predicted_N), 1)
    wrong = np.flatnonzero(predicted_N != target)
    wrong = wrong[np.argsort(chosen_N[wrong], kind="stable")]
    return ValidationEvidence(
        num_images=len(target),
        num_correct=int((predicted_N == target).sum()),
        metrics=known,
        classes=tuple(
            ClassRow(
                name=name,
                train_images=counts[k],
                support=int(confusion_KK[k].sum()),
                num_predicted=int(confusion_KK[:, k].sum()),
                num_correct=int(confusion_KK[k, k]),
            )
            for k, name in enumerate(manifest.classes)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion_KK),
        loss_deviation=_compute_deviation(-np.log(np.maximum(chosen_N, _TINY))),
        label_noise=None if is_adjusted else estimate_label_noise(probabilities_NK, target),
        mistakes={
            predictions.paths[row]: manifest.classes[predicted_N[row]] for row in wrong.tolist()
        },
        accuracy_without_leaks=accuracy_without_leaks,
    )


def _find_label_mistakes(predictions: SplitPredictions, classes: Sequence[str]) -> dict[str, str]:
    """Return the label of each image whose value is least probable, if another one is likelier."""
    p_NK = predictions.probabilities
    p_of_truth_NK = np.where(predictions.target > 0, p_NK, 1 - p_NK)
    label_N, least_N = p_of_truth_NK.argmin(axis=1), p_of_truth_NK.min(axis=1)
    order = np.argsort(least_N, kind="stable")
    return {
        predictions.paths[row]: classes[label_N[row]]
        for row in order.tolist()
        if least_N[row] < _EVEN
    }


def build_validation_of_card(
    metrics: Mapping[str, float | None],
    details: Mapping[str, Any],
    clean: Mapping[str, float | None],
) -> ValidationEvidence | None:
    """Return what the model card of an older run tells; None without an evaluation."""
    num_images = details.get("num_images")
    if not num_images:
        return None
    accuracy = metrics.get("accuracy")
    return ValidationEvidence(
        num_images=int(num_images),
        num_correct=None if accuracy is None else round(accuracy * num_images),
        metrics={name: value for name, value in metrics.items() if value is not None},
        classes=_parse_classes(details.get("per_class") or details.get("per_label") or {}),
        accuracy_without_leaks=clean.get("accuracy"),
    )


def _parse_classes(rows: Mapping[str, Mapping[str, Any]]) -> tuple[ClassRow, ...]:
    return tuple(
        ClassRow(
            name=name,
            train_images=row.get("train_images"),
            support=int(row.get("support") or 0),
            num_predicted=int(row.get("num_predicted") or 0),
            num_correct=round((row.get("recall") or 0.0) * (row.get("support") or 0)),
            average_precision=row.get("average_precision"),
        )
        for name, row in rows.items()
    )


def _compute_deviation(losses_N: NDArray[np.float64]) -> float | None:
    return float(losses_N.std(ddof=1)) if len(losses_N) > 1 else None
