"""Rules on the learning rate: too high, too low, or too high for layers that begin to train."""

import math
from collections.abc import Sequence

from finetune.diagnosis.certainty import is_higher_loss, is_lower_accuracy
from finetune.diagnosis.evidence import EpochRow, RunEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.scores import get_train_score
from finetune.diagnosis.suggestions import (
    suggest_backbone_rate,
    suggest_lower_rate,
    suggest_rate,
)
from finetune.units import format_count, format_percent, format_scientific

EXPLOSION_FACTOR = 10.0
"""Multiple of the loss of guessing from which a loss has exploded.

As in the note during training: far above the loss of a network that overfits, which is too sure of
a few predictions. This one is sure of wrong predictions everywhere.
"""

MIN_STEPS = 10
"""Steps of a run below which small changes of its weights say nothing of the learning rate."""

MIN_TOTAL_CHANGE = 1e-3
"""Relative change of the weights in a whole run below which the learning rate is too low.

A good step changes weights by about a thousandth of their size (Karpathy's lecture notes,
https://cs231n.github.io/neural-networks-3/#ratio): all steps together moved less than one should.
"""

MIN_SPIKES = 2
"""Epochs with a rising training loss from which it is no accident."""


def find_exploded_loss(evidence: RunEvidence) -> Finding | None:
    """Find a validation loss far above that of guessing, or that is not finite."""
    guess = _compute_guess_loss(evidence)
    losses = [(row, row.val["loss"]) for row in evidence.curves.rows if "loss" in row.val]
    found = next(
        (
            (row, loss)
            for row, loss in losses
            if row.epoch and (not math.isfinite(loss) or loss > EXPLOSION_FACTOR * guess)
        ),
        None,
    )
    if found is None:
        return None
    row, loss = found
    before = min((one for other, one in losses if other.epoch < row.epoch), default=None)
    last = losses[-1][1]
    has_lasted = not last <= EXPLOSION_FACTOR * guess
    start = "" if before is None else f" from {before:.4f}"
    remedy, option = suggest_lower_rate(evidence, 0.1)
    return Finding(
        rule="exploded_loss",
        severity="problem" if has_lasted else "warning",
        title=f"Learning rate too high: the loss exploded in epoch {row.epoch}",
        sentence=(
            f"The validation loss rose{start} to {format_scientific(loss, digits=3)} in epoch "
            f"{row.epoch}; guessing all classes alike has {guess:.4f}. After the last epoch it was "
            f"{format_scientific(last, digits=3)}."
        ),
        numbers={
            "epoch": row.epoch,
            "loss": loss,
            "loss_of_guessing": guess,
            "last_loss": last,
            **({} if before is None else {"loss_before": before}),
        },
        remedy=remedy,
        option=option,
    )


def find_fall_from_probe(evidence: RunEvidence) -> Finding | None:
    """Find fine-tuning that destroys what the linear probe knew, also of the training images."""
    probe, count = evidence.curves.probe, evidence.data.num_val
    known = [
        (row.val_accuracy, row) for row in evidence.curves.epochs if row.val_accuracy is not None
    ]
    if probe is None or probe.val_accuracy is None or not known or not count:
        return None
    start = probe.val_accuracy
    low, lowest = min(known, key=lambda pair: pair[0])
    end, last = known[-1]
    if not _is_below_probe(evidence, lowest, probe):
        return None
    has_lasted = _is_below_probe(evidence, last, probe)
    remedy, option = suggest_lower_rate(evidence, 0.1) if has_lasted else ("", "")
    return Finding(
        rule="fall_from_probe",
        severity="problem" if has_lasted else "info",
        title=(
            "Learning rate too high: fine-tuning destroyed the features"
            if has_lasted
            else f"{probe.accuracy_name.capitalize()} fell below the probe's in epoch "
            f"{lowest.epoch}, and recovered"
        ),
        sentence=(
            f"Validation {probe.accuracy_name} fell from {format_percent(start)} (linear probe) to "
            f"{format_percent(low)} in epoch {lowest.epoch}, that of the training images as well, "
            f"and was {format_percent(end)} after the last epoch."
        ),
        numbers={
            "probe_accuracy": start,
            "lowest_accuracy": low,
            "lowest_epoch": lowest.epoch,
            "last_accuracy": end,
            "validation_images": count,
        },
        remedy=remedy,
        option=option,
    )


def _is_below_probe(evidence: RunEvidence, row: EpochRow, probe: EpochRow) -> bool:
    """Return whether both accuracies are below the probe's: that of overfitting is not."""
    data = evidence.data
    if row.val_accuracy is None or probe.val_accuracy is None:
        return False
    if not is_lower_accuracy(row.val_accuracy, probe.val_accuracy, data.num_val, data.num_val):
        return False
    if row.train_accuracy is None or probe.train_accuracy is None:
        return True  # an older run: the validation images alone must do
    count = data.num_train_eval
    return bool(count) and is_lower_accuracy(row.train_accuracy, probe.train_accuracy, count, count)


def find_unsteady_loss(evidence: RunEvidence) -> Finding | None:
    """Find a loss of the training images that rises again and again within the phases."""
    validation = evidence.validation
    deviation = None if validation is None else validation.loss_deviation
    count = evidence.data.num_train_eval
    if deviation is None or not count:
        return None
    starts = {row.epoch for row in evidence.curves.phase_starts}
    pairs = [
        (before, row)
        for before, row in zip(evidence.curves.epochs, evidence.curves.epochs[1:], strict=False)
        if row.epoch not in starts and "loss" in row.train_eval and "loss" in before.train_eval
    ]
    spikes = [
        (before, row)
        for before, row in pairs
        if is_higher_loss(
            row.train_eval["loss"],
            before.train_eval["loss"],
            deviation=deviation,
            num_images=count,
        )
    ]
    if len(spikes) < MIN_SPIKES:
        return None
    before, row = max(spikes, key=lambda pair: pair[1].train_eval["loss"])
    names = ", ".join(str(one.epoch) for _, one in spikes)
    return Finding(
        rule="unsteady_loss",
        severity="warning",
        title="Learning rate too high: the training loss has spikes",
        sentence=(
            f"The loss of the training images rose in epochs {names}, most in epoch {row.epoch}: "
            f"from {before.train_eval['loss']:.4f} to {row.train_eval['loss']:.4f}."
        ),
        numbers={
            "spikes": len(spikes),
            "highest_epoch": row.epoch,
            "loss": row.train_eval["loss"],
            "loss_before": before.train_eval["loss"],
            "training_images": count,
        },
        remedy="Lower the learning rate:",
        option=suggest_rate(evidence, 0.3),
    )


def find_rate_too_low(evidence: RunEvidence) -> Finding | None:
    """Find weights that hardly moved in a whole run whose training images are not learned."""
    epochs, data = evidence.curves.epochs, evidence.data
    changes = _sum_changes(epochs)
    score = get_train_score(evidence, epochs[-1]) if changes else None
    if score is None:
        return None
    group, change = max(changes.items(), key=lambda item: item[1])
    is_learned = not is_lower_accuracy(score.value, 1.0, score.count, score.count)
    if change >= MIN_TOTAL_CHANGE or is_learned or _has_few_steps(evidence):
        return None
    return Finding(
        rule="rate_too_low",
        severity="problem",
        title="Learning rate too low: the weights hardly moved",
        sentence=(
            f"In {format_count(len(epochs), 'epoch')} no layer group changed by more than "
            f"{format_scientific(change)} of its size ({group}). "
            f"{score.describe('the training images')}."
        ),
        numbers={
            "largest_change": change,
            "group": group,
            f"train_{score.name}": score.value,
            "training_images": data.num_train_eval,
        },
        remedy="Raise the learning rate, or leave optim.lr out so that it is chosen:",
        option=suggest_rate(evidence, _choose_raise(change)),
    )


def _has_few_steps(evidence: RunEvidence) -> bool:
    """Return whether the run had so few steps that any rate changes the weights little.

    The rate rises from zero in the first steps, and falls to zero in the last ones.
    """
    batch_size = evidence.settings.get("trainer.batch_size")
    if not isinstance(batch_size, int) or not evidence.data.num_train:
        return False
    steps = max(1, evidence.data.num_train // batch_size) * len(evidence.curves.epochs)
    return steps < MIN_STEPS


def _choose_raise(change: float) -> float:
    """Return the factor of the rate for ten times the least change of the weights, 10 to 1,000."""
    return min(1000.0, max(10.0, 10 * MIN_TOTAL_CHANGE / change if change > 0 else 1000.0))


def _sum_changes(epochs: Sequence[EpochRow]) -> dict[str, float]:
    """Return the sum of the relative changes of each layer group that trained.

    A head that began with zeros is left out: it has no change relative to them in its first epoch,
    and large ones later.
    """
    changes: dict[str, float] = {}
    from_zero: set[str] = set()
    for row in epochs:
        for name in row.trained_groups - from_zero:
            if name in row.weight_changes:
                changes[name] = changes.get(name, 0.0) + row.weight_changes[name]
            elif name not in changes:
                from_zero.add(name)
    return changes


def find_phase_jump(evidence: RunEvidence) -> Finding | None:
    """Find a validation loss that jumps when further layer groups begin to train."""
    validation = evidence.validation
    deviation = None if validation is None else validation.loss_deviation
    epochs = {row.epoch: row for row in evidence.curves.epochs}
    if deviation is None or not evidence.data.num_val:
        return None
    for row in evidence.curves.phase_starts:
        before = epochs.get(row.epoch - 1)
        if before is None or "loss" not in row.val or "loss" not in before.val:
            continue
        start, jump = before.val["loss"], row.val["loss"]
        end = evidence.curves.epochs[-1].val.get("loss", jump)
        count = evidence.data.num_val
        if not is_higher_loss(jump, start, deviation=deviation, num_images=count):
            continue
        has_lasted = is_higher_loss(end, start, deviation=deviation, num_images=count)
        added = sorted(row.trained_groups - before.trained_groups)
        return Finding(
            rule="phase_jump",
            severity="warning" if has_lasted else "info",
            title=f"The loss jumped in epoch {row.epoch}, when {' and '.join(added)} joined",
            sentence=(
                f"The validation loss rose from {start:.4f} to {jump:.4f} in epoch {row.epoch}, in "
                f"which {', '.join(added)} began to train; after the last epoch it was {end:.4f}."
            ),
            numbers={
                "epoch": row.epoch,
                "loss_before": start,
                "loss": jump,
                "last_loss": end,
                "validation_images": count,
            },
            remedy="Lower the learning rate of the backbone:" if has_lasted else "",
            option=suggest_backbone_rate(evidence, 0.3) if has_lasted else "",
        )
    return None


def _compute_guess_loss(evidence: RunEvidence) -> float:
    data = evidence.data
    return math.log(2 if data.is_multi_label else max(2, len(data.classes)))
