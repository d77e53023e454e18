"""Rule on a run whose training diverged, and that ended there."""

from finetune.diagnosis.divergence_error import Divergence
from finetune.diagnosis.evidence import RunEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.suggestions import suggest_lower_rate
from finetune.units import format_count, format_scientific

_EARLY_FACTOR, _LATE_FACTOR = 0.01, 0.1
"""Factors of the learning rate: one that survived no epoch is further off than one that did."""


def find_divergence(evidence: RunEvidence) -> Finding | None:
    """Find a loss, gradient, weight or output that was not finite and ended the run."""
    divergence = evidence.divergence
    if divergence is None:
        return None
    if divergence.is_first:
        return _describe_first_step(evidence, divergence)
    epochs = [row for row in evidence.curves.epochs if row.epoch < divergence.epoch]
    where = f"epoch {divergence.epoch}"
    what = "the last stage diverged" if divergence.is_probe else "training diverged"
    rates = divergence.learning_rates
    highest = max(rates, key=lambda name: rates[name], default=None)
    at_rate = (
        "" if highest is None else f", at a learning rate of {format_scientific(rates[highest])}"
    )
    is_own = ":" in str(evidence.settings.get("loss.name"))
    remedy, option = suggest_lower_rate(evidence, _LATE_FACTOR if epochs else _EARLY_FACTOR)
    return Finding(
        rule="diverged",
        severity="problem",
        title=f"Learning rate too high: {what} in {where}",
        sentence=(
            f"{divergence.what[:1].upper()}{divergence.what[1:]} {_name_place(divergence)}"
            f"{at_rate}{'' if highest is None else f' ({highest})'}. {_describe_before(evidence)}"
        ).rstrip(),
        numbers={
            **_list_numbers(divergence),
            "completed_epochs": 0 if divergence.is_probe else len(epochs),
            **({} if highest is None else {"learning_rate": rates[highest]}),
        },
        remedy=(
            f"{remedy.removesuffix(':')}; check what your own loss returns, too:"
            if is_own
            else remedy
        ),
        option=option,
    )


def _describe_first_step(evidence: RunEvidence, divergence: Divergence) -> Finding:
    """Return the finding on a first step, before which no learning rate had an effect."""
    is_half = evidence.settings.get("trainer.precision") == "16-mixed"
    return Finding(
        rule="diverged",
        severity="problem",
        title="Training diverged in its first step",
        sentence=(
            f"{divergence.what[:1].upper()}{divergence.what[1:]} {_name_place(divergence)}. No "
            f"step has changed the weights before, so that the learning rate is not the cause."
        ),
        numbers=_list_numbers(divergence),
        remedy="Half precision overflows above 65,504. Train in 32 bits:"
        if is_half
        else "Check the loss (loss.name, loss.params) and the weights at the start.",
        option="trainer.precision=32-true" if is_half else "",
    )


def _name_place(divergence: Divergence) -> str:
    if divergence.step is None:
        return f"after epoch {divergence.epoch}"
    total = "" if divergence.steps_per_epoch is None else f" of {divergence.steps_per_epoch}"
    part = " of the linear probe's last stage" if divergence.is_probe else ""
    return f"in step {divergence.step}{total} of epoch {divergence.epoch}{part}"


def _describe_before(evidence: RunEvidence) -> str:
    """Return a sentence on the last validation loss before; empty without one."""
    rows = [row for row in evidence.curves.rows if "loss" in row.val]
    if not rows:
        return ""
    row = rows[-1]
    after = "the linear probe" if row.epoch == 0 else format_count(row.epoch, "epoch")
    return f"The validation loss was {row.val['loss']:.4f} after {after}."


def _list_numbers(divergence: Divergence) -> dict[str, float | int | str]:
    return {
        "epoch": divergence.epoch,
        **({} if divergence.step is None else {"step": divergence.step}),
        **(
            {}
            if divergence.steps_per_epoch is None
            else {"steps_per_epoch": divergence.steps_per_epoch}
        ),
    }
