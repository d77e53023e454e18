"""Options of ``finetune fit`` that rules suggest, with values from those of the run."""

from finetune.diagnosis.evidence import RunEvidence

_MAX_RATE = 100.0
_MIXUP_ALPHA = 0.2


def suggest_rate(evidence: RunEvidence, factor: float) -> str:
    """Return the option that multiplies the learning rates, as ``optim.lr=0.0003``.

    A measured rate follows from ``optim.feature_change``. Empty if the run does not know its rate.
    """
    key = "optim.feature_change" if "optim.lr" in evidence.measured else "optim.lr"
    value = evidence.settings.get(key)
    if not isinstance(value, int | float) or value <= 0:
        return ""
    return f"{key}={_format_number(min(_MAX_RATE, value * factor))}"


def suggest_lower_rate(evidence: RunEvidence, factor: float) -> tuple[str, str]:
    """Return the remedy and the option for a rate that is far too high.

    A rate of the user's own after a linear probe is measured instead: a tenth of a rate that is a
    thousand times too high does not help, and how far it is off nothing of such a run tells.
    """
    is_after_probe = evidence.settings.get("probe.enabled") == "on" and not (
        evidence.divergence is not None and evidence.divergence.is_probe
    )
    if is_after_probe and "optim.lr" not in evidence.measured:
        return "Let a new run measure the learning rate:", "optim.lr=auto"
    return "Lower the learning rate:", suggest_rate(evidence, factor)


def suggest_backbone_rate(evidence: RunEvidence, factor: float) -> str:
    """Return the option that multiplies the learning rates of the backbone only."""
    value = evidence.settings.get("optim.backbone_lr_scale")
    if not isinstance(value, int | float) or value <= 0:
        return suggest_rate(evidence, factor)
    return f"optim.backbone_lr_scale={_format_number(min(10.0, value * factor))}"


def suggest_epochs(evidence: RunEvidence) -> str:
    """Return the option that doubles the epochs."""
    count = evidence.curves.num_planned_epochs or len(evidence.curves.epochs)
    return f"trainer.epochs={2 * max(1, count)}"


def suggest_regularization(evidence: RunEvidence) -> str:
    """Return the option that makes the training images harder to learn by heart."""
    if evidence.settings.get("augment.name") in ("none", "light", "medium"):
        return "augment.name=strong"
    if not evidence.data.is_multi_label and evidence.settings.get("augment.mixup") == 0:
        return f"augment.mixup={_MIXUP_ALPHA}"
    return ""


def suggest_division(evidence: RunEvidence) -> str:
    """Return the option that divides the images anew; empty for cross-validations and folds."""
    if evidence.settings.get("cross_validation.num_folds") is not None:
        return ""
    return "cross_validation.num_folds=5"


def suggest_balance(evidence: RunEvidence) -> str:
    """Return the option that gives rare classes more weight; empty if the run has one already."""
    if evidence.settings.get("imbalance.strategy") not in (None, "auto", "none"):
        return ""
    return "imbalance.strategy=class_weights"


def _format_number(value: float) -> str:
    """Return a number with two digits and without an exponent, as people type it."""
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.12f}"[: _count_places(value)]


def _count_places(value: float) -> int:
    """Return the length of a small number's text with two digits that are not 0."""
    text = f"{value:.12f}"
    first = next((place for place, digit in enumerate(text) if digit not in "0."), len(text))
    return first + 1
