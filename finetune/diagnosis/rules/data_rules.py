"""Rules on the images: too few to judge by, leaks, duplicates of other classes, label errors."""

from finetune.diagnosis.certainty import (
    CONFIDENCE,
    compute_difference_interval,
    compute_poisson_tail,
)
from finetune.diagnosis.evidence import LabelError, RunEvidence
from finetune.diagnosis.finding import Finding, Severity
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MAX_INTERVAL = 0.2
"""Width of the 95% interval of the accuracy from which validation decides too little.

Ten points up or down: with 100 images it is never reached. Settings of a run differ by less.
"""

MAX_CONFLICTING = 0.01
"""Fraction of images with a duplicate of another class, and so at least half of them wrong."""

_NUM_EXAMPLES = 2


def find_small_validation(evidence: RunEvidence) -> Finding | None:
    """Find an accuracy whose interval is too wide to choose anything by."""
    validation = evidence.validation
    if validation is None or validation.num_correct is None or not validation.num_images:
        return None
    total = validation.num_images
    low, high = compute_wilson_interval(validation.num_correct, total)
    if high - low <= MAX_INTERVAL:
        return None
    accuracy = validation.num_correct / total
    return Finding(
        rule="small_validation",
        severity="warning",
        title="Validation set too small to trust",
        sentence=(
            f"Of {format_count(total, 'validation image')} {validation.num_correct:,} are correct: "
            f"the accuracy of {format_percent(accuracy)} may be anything from "
            f"{format_percent(low)} to {format_percent(high)} (95% interval), so that differences "
            f"between runs and epochs are mostly chance."
        ),
        numbers={
            "validation_images": total,
            "accuracy": accuracy,
            "interval_low": low,
            "interval_high": high,
        },
        remedy="Let each image be validated once by a cross-validation:",
        option="cross_validation.num_folds=5",
    )


def find_leaks(evidence: RunEvidence) -> Finding | None:
    """Find validation images with a duplicate in the training images."""
    data, validation = evidence.data, evidence.validation
    if not data.num_leaked or not data.num_val:
        return None
    fraction = data.num_leaked / data.num_val
    width = 0.0
    if validation is not None and validation.num_correct is not None:
        low, high = compute_wilson_interval(validation.num_correct, validation.num_images)
        width = high - low
    # leaked images change the accuracy by at most their fraction
    severity: Severity = (
        "problem" if fraction > width else "warning" if fraction > width / 2 else "info"
    )
    without = None if validation is None else validation.accuracy_without_leaks
    effect = "" if without is None else f" Without them, accuracy is {format_percent(without)}."
    return Finding(
        rule="leaks",
        severity=severity,
        title="Leaks: validation images are in the training images, too",
        sentence=(
            f"{data.num_leaked:,} of {format_count(data.num_val, 'validation image')} "
            f"({format_percent(fraction)}) have a duplicate in the training images, such as "
            f"{data.leaked_example}: the accuracy is too high by up to as much.{effect}"
        ),
        numbers={
            "leaked_images": data.num_leaked,
            "validation_images": data.num_val,
            "fraction": fraction,
            **({} if without is None else {"accuracy_without_leaks": without}),
        },
        remedy="Leave their duplicates out of the training images:",
        option="data.leakage=drop",
    )


def find_easier_validation(evidence: RunEvidence) -> Finding | None:
    """Find validation images that are easier than the training images without a known leak."""
    row, data = evidence.curves.best_row, evidence.data
    if row is None or not data.num_val or not data.num_train_eval:
        return None
    if "accuracy" not in row.val or "accuracy" not in row.train_eval:
        return None
    val, train = row.val["accuracy"], row.train_eval["accuracy"]
    low = compute_difference_interval(
        round(val * data.num_val),
        data.num_val,
        round(train * data.num_train_eval),
        data.num_train_eval,
    )[0]
    if low <= 0:
        return None
    return Finding(
        rule="easier_validation",
        severity="warning",
        title="Validation is easier than training",
        sentence=(
            f"{format_percent(val)} of {format_count(data.num_val, 'validation image')} are "
            f"correct, but only {format_percent(train)} of "
            f"{format_count(data.num_train_eval, 'training image')} that are measured alike: at "
            f"least {format_percent(low)} more ({CONFIDENCE:.0%} confidence). The splits differ: "
            f"wrong labels in training, duplicates that were not found, or easier photos."
        ),
        numbers={
            "val_accuracy": val,
            "train_accuracy": train,
            "difference_lower_end": low,
            "validation_images": data.num_val,
            "training_images": data.num_train_eval,
        },
        remedy="See whether it is so for other divisions of the images, too:",
        option="cross_validation.num_folds=5",
    )


def find_conflicting_duplicates(evidence: RunEvidence) -> Finding | None:
    """Find duplicates with different labels, of which at least one is wrong."""
    data = evidence.data
    total = data.num_train + data.num_val
    if not data.num_conflicting or not total:
        return None
    fraction = data.num_conflicting / total
    names = " and ".join(data.conflicting_example)
    return Finding(
        rule="conflicting_duplicates",
        severity="warning" if fraction > MAX_CONFLICTING else "info",
        title="The same image under several labels",
        sentence=(
            f"{data.num_conflicting:,} of {format_count(total, 'image')} "
            f"({format_percent(fraction)}) have a duplicate in another class, such as {names}: at "
            f"least half of these labels are wrong."
        ),
        numbers={
            "conflicting_images": data.num_conflicting,
            "images": total,
            "fraction": fraction,
        },
        remedy="Look at them in audit.csv of the run folder, and remove the wrong ones.",
    )


def find_label_errors(evidence: RunEvidence) -> Finding | None:
    """Find more labels that the model or the audit contradicts than right ones would give."""
    data, validation = evidence.data, evidence.validation
    errors = data.label_errors or ()
    worst = () if validation is None else validation.improbable_paths
    if validation is None or validation.num_improbable is None:
        return None
    expected = validation.num_improbable_expected
    if expected is None:
        return None
    p_value = compute_poisson_tail(validation.num_improbable, expected)
    if p_value > 1 - CONFIDENCE:
        return None
    by_path = {error.path: error for error in errors}
    confirmed = [by_path[path] for path in worst if path in by_path]
    fraction = (validation.num_improbable - expected) / validation.num_images
    return Finding(
        rule="label_errors",
        severity="warning",
        title="Labels are probably wrong",
        sentence=(
            f"{validation.num_improbable:,} of "
            f"{format_count(validation.num_images, 'validation image')} have a label with a "
            f"probability below {format_percent(validation.improbable_threshold)}; if the labels "
            f"were right, {expected:.1f} would be expected. {_name_examples(confirmed, worst)}"
        ),
        numbers={
            "improbable_labels": validation.num_improbable,
            "expected": expected,
            "p_value": p_value,
            "fraction_in_excess": fraction,
            "label_errors_of_audit": len(errors),
            "confirmed_by_audit": len(confirmed),
        },
        remedy="Look at them: audit.csv of the run folder lists likely label errors of all images. "
        "Until they are right, the loss should not insist on every label:",
        option="loss.label_smoothing=0.2"
        if evidence.settings.get("loss.label_smoothing") in (0.1, 0, 0.0)
        and evidence.settings.get("loss.name") == "cross_entropy"
        else "",
    )


def _name_examples(confirmed: list[LabelError], worst: tuple[str, ...]) -> str:
    if confirmed:
        names = ", ".join(
            f"{error.path} (rather {error.predicted_label})" for error in confirmed[:_NUM_EXAMPLES]
        )
        return f"The audit also contradicts {len(confirmed)} of them, such as {names}."
    return f"The least probable: {', '.join(worst[:_NUM_EXAMPLES])}."
