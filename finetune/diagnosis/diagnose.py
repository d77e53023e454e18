"""Diagnosis of a run: the table of rules, and the findings in the order of their severity."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune.diagnosis.evidence import RunEvidence
from finetune.diagnosis.finding import SEVERITIES, Finding
from finetune.diagnosis.rules import (
    class_rules,
    data_rules,
    fit_rules,
    learning_rules,
    network_rules,
    rate_rules,
)

ACCUSATIONS = ("problem", "warning")
"""Severities of findings that a good run has none of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Row of the table of rules.

    Attributes:
        name: Name of the rule, and of its findings.
        find: Function from the evidence to a finding, or None.
        explains: Rules whose findings follow from a "problem" of this one, and are left out.
    """

    name: str
    find: Callable[[RunEvidence], Finding | None]
    explains: tuple[str, ...] = ()


_RATE_CONSEQUENCES = (
    "fall_from_probe",
    "unsteady_loss",
    "phase_jump",
    "underfitting",
    "still_improving",
    "overfitting",
    "generalization_gap",
    "no_better_than_guessing",
    "class_never_predicted",
    "weak_rare_class",
    "confused_pair",
    "label_errors",
    "no_gain",
)

RULES = (
    Rule("exploded_loss", rate_rules.find_exploded_loss, _RATE_CONSEQUENCES),
    Rule("fall_from_probe", rate_rules.find_fall_from_probe, _RATE_CONSEQUENCES[1:]),
    Rule(
        "rate_too_low",
        rate_rules.find_rate_too_low,
        (*_RATE_CONSEQUENCES[1:], "unmoved_layers", "vanishing_gradients"),
    ),
    Rule("unsteady_loss", rate_rules.find_unsteady_loss),
    Rule("phase_jump", rate_rules.find_phase_jump),
    Rule("leaks", data_rules.find_leaks, ("easier_validation", "good_fit")),
    Rule(
        "frozen_too_deep", learning_rules.find_frozen_too_deep, ("underfitting", "still_improving")
    ),
    Rule("no_better_than_guessing", class_rules.find_no_better_than_guessing),
    Rule("underfitting", learning_rules.find_underfitting),
    Rule("still_improving", learning_rules.find_still_improving),
    Rule("overfitting", fit_rules.find_overfitting),
    Rule("generalization_gap", fit_rules.find_generalization_gap),
    Rule("small_validation", data_rules.find_small_validation),
    Rule("easier_validation", data_rules.find_easier_validation),
    Rule("label_errors", data_rules.find_label_errors),
    Rule("conflicting_duplicates", data_rules.find_conflicting_duplicates),
    Rule("class_never_predicted", class_rules.find_classes_never_predicted),
    Rule("weak_rare_class", class_rules.find_weak_rare_classes),
    Rule("dead_units", network_rules.find_dead_units),
    Rule("saturated_units", network_rules.find_saturated_units),
    Rule("correlated_maps", network_rules.find_correlated_maps),
    Rule("unmoved_layers", network_rules.find_unmoved_layers),
    Rule("vanishing_gradients", network_rules.find_vanishing_gradients),
    Rule("exploding_gradients", network_rules.find_exploding_gradients),
    Rule("no_gain", fit_rules.find_no_gain),
    Rule("confused_pair", class_rules.find_confused_pair),
)
"""Rules in the order of their findings within a severity: causes before what follows from them."""


def diagnose(evidence: RunEvidence) -> tuple[Finding, ...]:
    """Return the findings on a run, the worst first.

    A run without a problem or a warning has a finding "good_fit", if its accuracy is known. What
    follows from a problem, as an accuracy of guessing from a rate that is too high, is left out.
    """
    found: list[Finding] = []
    explained: set[str] = set()
    for rule in RULES:
        if rule.name in explained:
            continue
        finding = rule.find(evidence)
        if finding is not None:
            found.append(finding)
            if finding.severity == "problem":
                explained.update(rule.explains)
    if not any(finding.severity in ACCUSATIONS for finding in found):
        fit = fit_rules.find_good_fit(evidence)
        found += [] if fit is None else [fit]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
