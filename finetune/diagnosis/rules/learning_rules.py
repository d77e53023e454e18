"""Rules on whether the network has learned the training images: epochs and frozen layers."""

from finetune.diagnosis.certainty import CONFIDENCE, is_higher_loss, is_lower_accuracy
from finetune.diagnosis.evidence import EpochRow, RunEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.scores import Score, get_train_score
from finetune.diagnosis.suggestions import suggest_epochs
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MIN_LEARNED = 0.9
"""Accuracy on the training images below which a network has not learned them.

A network of today's size can learn any labels of so few images (Zhang et al. 2017,
https://arxiv.org/abs/1611.03530): a tenth of them being wrong after training is a matter of epochs,
rate and layers, not of the images. It is compared with the upper end of the interval.
"""

_LAST_PART = 3
"""The last third of the epochs shows whether the run still improves at its end."""


def find_still_improving(evidence: RunEvidence) -> Finding | None:
    """Find a run whose validation images still improve at its end."""
    epochs = [
        (row, row.val_accuracy) for row in evidence.curves.epochs if row.val_accuracy is not None
    ]
    count = evidence.data.num_val
    if len(epochs) < 2 or not count or evidence.curves.is_stopped_early:
        return None
    first, start = epochs[-1 - max(1, len(epochs) // _LAST_PART)]
    last, end = epochs[-1]
    if not is_lower_accuracy(start, end, count, count):
        return None
    return Finding(
        rule="still_improving",
        severity="warning",
        title="Underfitting: still improving at the end",
        sentence=(
            f"Validation {last.accuracy_name} rose from {format_percent(start)} in epoch "
            f"{first.epoch} to {format_percent(end)} in epoch {last.epoch}, the last one, by more "
            f"than chance for {format_count(count, 'image')}."
        ),
        numbers={
            "accuracy": end,
            "accuracy_before": start,
            "epoch_before": first.epoch,
            "validation_images": count,
        },
        remedy="Train for more epochs:",
        option=suggest_epochs(evidence),
    )


def find_frozen_too_deep(evidence: RunEvidence) -> Finding | None:
    """Find frozen layers whose features are of less use than those of an earlier stage."""
    stages, frozen = evidence.stages, _find_frozen_groups(evidence)
    if not frozen:
        return None
    remedy = "Train the layers that are frozen:"
    row = evidence.curves.best_row or (evidence.curves.rows[-1] if evidence.curves.rows else None)
    if stages is not None and stages.last in frozen:
        difference, error = stages.loss_difference, stages.standard_error
        if error > 0 and is_higher_loss(difference, 0.0, deviation=error, num_images=1):
            return Finding(
                rule="frozen_too_deep",
                severity="problem",
                title="Frozen too deep: the last features do not suit these images",
                sentence=(
                    f"A head on the features of {stages.earlier} is better than one on those of "
                    f"{stages.last}, which stay frozen: accuracy "
                    f"{format_percent(stages.earlier_accuracy)} and "
                    f"{format_percent(stages.last_accuracy)}, log loss {difference:.3f} lower "
                    f"(standard error {error:.3f})."
                ),
                numbers={
                    "earlier_stage": stages.earlier,
                    "earlier_accuracy": stages.earlier_accuracy,
                    "last_accuracy": stages.last_accuracy,
                    "loss_difference": difference,
                    "standard_error": error,
                },
                remedy=remedy,
                option="unfreeze.name=all",
            )
    learned = _judge_learning(evidence, row)
    if learned is None:
        return None
    score, high = learned
    return Finding(
        rule="frozen_too_deep",
        severity="problem",
        title="Frozen too deep: the training images are not learned",
        sentence=(
            f"{_name_groups(frozen)} stay frozen. {score.describe('the training images')} (at "
            f"most {format_percent(high)} with {CONFIDENCE:.0%} confidence)."
        ),
        numbers={
            f"train_{score.name}": score.value,
            "upper_end": high,
            "frozen_groups": len(frozen),
            "training_images": evidence.data.num_train_eval,
        },
        remedy=remedy,
        option="unfreeze.name=all",
    )


def _find_frozen_groups(evidence: RunEvidence) -> frozenset[str]:
    """Return the layer groups that never trained."""
    epochs = evidence.curves.epochs
    trained = frozenset[str]().union(*(row.trained_groups for row in epochs))
    groups = frozenset[str]().union(*(row.learning_rates.keys() for row in epochs))
    if not groups and evidence.settings.get("unfreeze.name") == "linear_probe":
        last = () if evidence.stages is None else (evidence.stages.last,)
        return frozenset(last or ("the layers of the backbone",))
    return groups - trained


def _name_groups(groups: frozenset[str]) -> str:
    names = sorted(groups)
    return names[0].capitalize() if " " in names[0] else ", ".join(names)


def find_underfitting(evidence: RunEvidence) -> Finding | None:
    """Find training images that are not learned, although all layers train."""
    row = evidence.curves.best_row or (evidence.curves.rows[-1] if evidence.curves.rows else None)
    learned = _judge_learning(evidence, row)
    if learned is None or row is None:
        return None
    score, high = learned
    scores = ((one, get_train_score(evidence, one)) for one in evidence.curves.rows)
    first, start = next((one, known.value) for one, known in scores if known is not None)
    is_flat = not is_lower_accuracy(start, score.value, score.count, score.count)
    return Finding(
        rule="underfitting",
        severity="problem",
        title="Underfitting: the training images are not learned",
        sentence=(
            f"{score.describe('the training images')} without augmentation (at most "
            f"{format_percent(high)} with {CONFIDENCE:.0%} confidence); "
            + (
                f"in epoch {first.epoch} it was {format_percent(start)}; chance may explain that."
                if is_flat
                else f"in epoch {first.epoch} it was {format_percent(start)}."
            )
        ),
        numbers={
            f"train_{score.name}": score.value,
            "upper_end": high,
            f"train_{score.name}_before": start,
            "epoch_before": first.epoch,
            "training_images": evidence.data.num_train_eval,
        },
        remedy="Train for more epochs:",
        option=suggest_epochs(evidence),
    )


def _judge_learning(evidence: RunEvidence, row: EpochRow | None) -> tuple[Score, float] | None:
    """Return the score of the training images and the end of its interval; None if learned."""
    score = None if row is None else get_train_score(evidence, row)
    if score is None:
        return None
    high = compute_wilson_interval(score.num_correct, score.count, confidence=CONFIDENCE)[1]
    return (score, high) if high < MIN_LEARNED else None
