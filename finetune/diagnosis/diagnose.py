"""Diagnosis of a run: the table of rules, and the findings in the order of their severity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from finetune.diagnosis.evidence import RunEvidence
from finetune.diagnosis.finding import SEVERITIES, Finding
from finetune.diagnosis.rules import (
    class_rules,
    data_rules,
    divergence_rule,
    fit_rules,
    label_rules,
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

_LEARNING_CONSEQUENCES = (
    "still_improving",
    "class_never_predicted",
    "weak_rare_class",
    "confused_pair",
)

RULES = (
    Rule(
        "diverged",
        divergence_rule.find_divergence,
        ("exploded_loss", *_RATE_CONSEQUENCES),
    ),
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
        "frozen_too_deep",
        learning_rules.find_frozen_too_deep,
        ("underfitting", *_LEARNING_CONSEQUENCES),
    ),
    Rule("no_better_than_guessing", class_rules.find_no_better_than_guessing),
    Rule("underfitting", learning_rules.find_underfitting, _LEARNING_CONSEQUENCES),
    Rule("still_improving", learning_rules.find_still_improving),
    Rule("overfitting", fit_rules.find_overfitting),
    Rule("generalization_gap", fit_rules.find_generalization_gap),
    Rule("small_validation", data_rules.find_small_validation),
    Rule("easier_validation", data_rules.find_easier_validation),
    Rule("label_errors", label_rules.find_label_errors),
    Rule("conflicting_duplicates", label_rules.find_conflicting_duplicates),
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


JUDGED_ON_ALL_IMAGES = frozenset(
    {
        "leaks",
        "no_better_than_guessing",
        "small_validation",
        "label_errors",
        "conflicting_duplicates",
        "class_never_predicted",
        "weak_rare_class",
        "confused_pair",
        "good_fit",
    }
)
"""Rules that judge a cross-validation by all held-out images; the others judge its folds."""


def diagnose_folds(
    evidence: RunEvidence, folds: Sequence[Sequence[Finding]]
) -> tuple[Finding, ...]:
    """Return the findings on a cross-validation, the worst first.

    A problem or warning of the folds themselves, such as a learning rate that is too high, counts
    if more than half of them have it; the sentence is that of the first such fold.

    Args:
        evidence: Numbers of the cross-validation.
        folds: Findings of each fold.
    """
    found = list(diagnose(evidence))
    by_rule: dict[str, list[Finding]] = {}
    for findings in folds:
        for finding in findings:
            if finding.severity in ACCUSATIONS and finding.rule not in JUDGED_ON_ALL_IMAGES:
                by_rule.setdefault(finding.rule, []).append(finding)
    for same in by_rule.values():
        if 2 * len(same) > len(folds):
            where = f"{len(same)} of {len(folds)} folds"
            found.append(replace(same[0], title=f"{same[0].title} ({where})"))
    if any(finding.severity in ACCUSATIONS for finding in found):
        found = [finding for finding in found if finding.severity != "good"]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


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
