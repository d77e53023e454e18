"""Rules on what is learned and carries over to the validation images, or does not."""

from finetune.diagnosis.certainty import (
    compute_difference_interval,
    is_higher_loss,
    is_lower_accuracy,
)
from finetune.diagnosis.evidence import EpochRow, RunEvidence, ValidationEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.scores import compute_chance, get_train_score, get_val_score
from finetune.diagnosis.suggestions import (
    suggest_epochs,
    suggest_regularization,
)
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MIN_CARRIED_OVER = 0.5
"""Part of what is learned of the training images that must carry over to the validation images.

Both are counted from the accuracy of the most frequent class. Below a half, the network has rather
learned the images by heart than what they show. The upper end of the 95% interval is
compared; that of 99% misses four images a class (measured, see docs/guides/diagnosis.md).
"""


def find_overfitting(evidence: RunEvidence) -> Finding | None:
    """Find the epoch from which the validation loss rises while the training loss falls."""
    validation, count = evidence.validation, evidence.data.num_val
    deviation = None if validation is None else validation.loss_deviation
    epochs = [
        row for row in evidence.curves.epochs if "loss" in row.val and "loss" in row.train_eval
    ]
    if deviation is None or len(epochs) < 2 or not count:
        return None
    lowest = min(epochs, key=lambda row: row.val["loss"])
    last = epochs[-1]
    is_rising = is_higher_loss(
        last.val["loss"], lowest.val["loss"], deviation=deviation, num_images=count
    )
    if not is_rising or last.train_eval["loss"] > lowest.train_eval["loss"]:
        return None
    # a loss of over-confidence alone is mended by the temperature
    is_worse = "accuracy" in last.val and is_lower_accuracy(
        last.val["accuracy"], lowest.val["accuracy"], count, count
    )
    is_worse |= "calibrated_loss" in last.val and is_higher_loss(
        last.val["calibrated_loss"],
        lowest.val["calibrated_loss"],
        deviation=deviation,
        num_images=count,
    )
    kept = evidence.curves.best_epoch
    is_kept_better = kept is not None and kept <= lowest.epoch
    what = (
        f"The kept model is that of epoch {kept}."
        if is_kept_better and not evidence.curves.is_mixed
        else "Accuracy and calibrated loss do not get worse: only the confidence grows."
        if not is_worse
        else ""
    )
    return Finding(
        rule="overfitting",
        severity="warning" if is_worse else "info",
        title=f"Overfitting from epoch {lowest.epoch + 1}",
        sentence=(
            f"The validation loss rises from {lowest.val['loss']:.4f} in epoch {lowest.epoch} to "
            f"{last.val['loss']:.4f} in epoch {last.epoch}, while that of the training images "
            f"falls from {lowest.train_eval['loss']:.4f} to {last.train_eval['loss']:.4f}. {what}"
        ).rstrip(),
        numbers={
            "from_epoch": lowest.epoch + 1,
            "lowest_loss": lowest.val["loss"],
            "last_loss": last.val["loss"],
            "train_loss_before": lowest.train_eval["loss"],
            "last_train_loss": last.train_eval["loss"],
            "validation_images": count,
        },
        remedy="Use stronger augmentation, more images or fewer epochs:" if is_worse else "",
        option=(suggest_regularization(evidence) or f"trainer.epochs={lowest.epoch}")
        if is_worse
        else "",
    )


def find_generalization_gap(evidence: RunEvidence) -> Finding | None:
    """Find training images that are learned without the validation images following."""
    row, data = evidence.curves.best_row, evidence.data
    if row is None:
        return None
    learned, carried_over = get_train_score(evidence, row), get_val_score(evidence, row)
    if learned is None or carried_over is None:
        return None
    train, val = learned.value, carried_over.value
    low = compute_difference_interval(
        learned.num_correct, learned.count, carried_over.num_correct, carried_over.count
    )[0]
    if low <= 0:
        return None
    chance = compute_chance(evidence)
    carried = (val - chance) / (train - chance) if train > chance else 1.0
    high = compute_wilson_interval(carried_over.num_correct, carried_over.count)[1]
    is_small = high - chance < MIN_CARRIED_OVER * (train - chance)
    is_labels = data.is_multi_label
    total = sum(data.train_counts) if is_labels else data.num_train
    per_class = total / max(1, len(data.train_counts))
    return Finding(
        rule="generalization_gap",
        severity="warning" if is_small else "info",
        title=(
            "Training set too small for this task"
            if is_small
            else f"{100 * (train - val):.1f} points better on training than on validation images"
        ),
        sentence=(
            f"{learned.describe('the training images')} and {format_percent(val)} of the "
            f"validation images; "
            + (
                f"a random order has {format_percent(chance)}"
                if is_labels
                else f"{format_percent(chance)} are of the most frequent class"
            )
            + f", so that {max(0.0, carried):.0%} of what was learned carries over. There are "
            f"{per_class:.0f} training images a {'label' if is_labels else 'class'}."
        ),
        numbers={
            f"train_{learned.name}": train,
            f"val_{learned.name}": val,
            "gap_lower_end": low,
            "random_order" if is_labels else "most_frequent_class": chance,
            "carried_over": carried,
            "images_per_label" if is_labels else "images_per_class": round(per_class, 1),
        },
        remedy="More training images help most; meanwhile, vary those that there are:"
        if is_small
        else "",
        option=suggest_regularization(evidence) if is_small else "",
    )


def find_no_gain(evidence: RunEvidence) -> Finding | None:
    """Find fine-tuning that did not improve on the linear probe."""
    curves = evidence.curves
    if curves.best_epoch != 0 or curves.probe is None or not curves.epochs or curves.is_mixed:
        return None
    key = "accuracy" if "accuracy" in curves.probe.val else "mean_average_precision"
    values = [row.val[key] for row in curves.epochs if key in row.val]
    if not values or key not in curves.probe.val:
        return None
    return Finding(
        rule="no_gain",
        severity="info",
        title="Fine-tuning did not improve on the linear probe",
        sentence=(
            f"The kept model is the linear probe ({key.replace('_', ' ')} "
            f"{format_percent(curves.probe.val[key])}); the best of {len(values)} epochs has "
            f"{format_percent(max(values))}."
        ),
        numbers={"probe": curves.probe.val[key], "best_epoch": max(values), "epochs": len(values)},
        remedy="More epochs may help:",
        option=suggest_epochs(evidence),
    )


def find_good_fit(evidence: RunEvidence) -> Finding | None:
    """Describe a fit that is as good on validation as on training images, or nearly so."""
    row, validation = evidence.curves.best_row, evidence.validation
    if row is None or validation is None or not validation.num_images:
        return None
    name = "the linear probe" if row.epoch == 0 else f"epoch {row.epoch}"
    where = "between epochs, nearest to" if evidence.curves.is_mixed else "that of"
    if validation.num_correct is None:
        return _describe_labels(row, validation, f"The model is {where} {name}.")
    is_alike = find_generalization_gap(evidence) is None
    low, high = compute_wilson_interval(validation.num_correct, validation.num_images)
    value = validation.num_correct / validation.num_images
    train = row.train_accuracy
    start = "" if train is None else f"{format_percent(train)} of the training images and "
    return Finding(
        rule="good_fit",
        severity="good",
        title="Good fit" if is_alike else "No fault in training was found",
        sentence=(
            f"{start}{format_percent(value)} of "
            f"{format_count(validation.num_images, 'validation image')} are correct (95% interval "
            f"{format_percent(low)} to {format_percent(high)}); the model is {where} {name}."
        ),
        numbers={
            "val_accuracy": value,
            "interval_low": low,
            "interval_high": high,
            "epoch": row.epoch,
            **({} if train is None else {"train_accuracy": train}),
        },
    )


def _describe_labels(row: EpochRow, validation: ValidationEvidence, end: str) -> Finding | None:
    """Describe a fit to multi-label images, whose average precision has no simple interval."""
    key = "mean_average_precision"
    value, train = validation.metrics.get(key), row.train_eval.get(key)
    if value is None:
        return None
    start = "" if train is None else f", of the training images {format_percent(train)}"
    return Finding(
        rule="good_fit",
        severity="good",
        title="No fault in training was found",
        sentence=(
            f"The mean average precision of "
            f"{format_count(validation.num_images, 'validation image')} is "
            f"{format_percent(value)}{start}. {end}"
        ),
        numbers={
            key: value,
            "epoch": row.epoch,
            **({} if train is None else {f"train_{key}": train}),
        },
    )
