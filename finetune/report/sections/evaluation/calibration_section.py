"""Section on calibration: reliability diagrams before and after the temperature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.bundle.validation_choices import uses_fitted_temperature
from finetune.evaluation.priors import compute_logit_shift
from finetune.report.reliability import Reliability, measure_reliability, undo_temperature
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split, name_split


@dataclass(frozen=True, slots=True)
class ReliabilityDiagram:
    """Reliability with its title."""

    title: str
    reliability: Reliability


@dataclass(frozen=True, slots=True)
class CalibrationSection:
    """Calibration of a model.

    Attributes:
        split: Name of the split of the diagrams; empty without diagrams.
        is_fitted_here: Whether the temperature was fitted to these images.
        temperature: Divisor of the logits.
        diagrams: Diagrams before and after, or one where there is no temperature.
        cross_validated: Cross-validated effect of the fitted temperature on the validation images;
            None without one.
        is_used: Whether the fitted temperature divides the logits; False where it does not lower
            the cross-validated log loss.
        is_multi_label: Whether the diagrams are of every label of each image.
    """

    split: str
    is_fitted_here: bool
    temperature: float
    diagrams: tuple[ReliabilityDiagram, ...]
    cross_validated: Mapping[str, Any] | None
    is_used: bool
    is_multi_label: bool


def build_calibration(facts: RunFacts) -> CalibrationSection | None:
    """Return the calibration of a model; None where nothing is known of it."""
    split = choose_main_split(facts) or ""
    predictions = facts.predictions.get(split)
    cross_validated = facts.facts.get("calibration")
    temperature = float(facts.card.get("temperature", 1.0))
    if predictions is None and cross_validated is None:
        return None
    diagrams = []
    if predictions is not None:
        after = measure_reliability(predictions.probabilities, predictions.target)
        diagrams.append(ReliabilityDiagram("With temperature", after))
        if temperature == 1.0:
            diagrams = [ReliabilityDiagram("Predicted probabilities", after)]
        else:
            raw = undo_temperature(
                predictions.probabilities,
                temperature,
                _get_shift(facts),
                is_multi_label=facts.is_multi_label,
            )
            before = measure_reliability(raw, predictions.target)
            diagrams.insert(0, ReliabilityDiagram("Without temperature", before))
    return CalibrationSection(
        name_split(split) if diagrams else "",
        split == "val",
        temperature,
        tuple(diagrams),
        cross_validated,
        uses_fitted_temperature(facts.facts),
        facts.is_multi_label,
    )


def _get_shift(facts: RunFacts) -> Any:
    priors = facts.card.get("priors")
    if priors is None or priors["target"] is None:
        return None
    return np.array(compute_logit_shift(tuple(priors["target"]), tuple(priors["model"])))
