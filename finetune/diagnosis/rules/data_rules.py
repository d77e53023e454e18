"""Rules on the splits: too few images to judge by, leaks, validation that is easier."""

from finetune.diagnosis.certainty import CONFIDENCE, compute_difference_interval
from finetune.diagnosis.evidence import RunEvidence
from finetune.diagnosis.finding import Finding, Severity
from finetune.diagnosis.scores import (
    compute_chance,
    compute_val_chance,
    get_final_score,
    get_train_score,
    get_val_score,
)
from finetune.diagnosis.suggestions import suggest_division
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MAX_INTERVAL = 0.2
"""Width of the 95% interval of the score from which validation decides too little.

Ten points up or down: with 100 images it is never reached. Settings of a run differ by less.
"""


def find_small_validation(evidence: RunEvidence) -> Finding | None:
    """Find a score whose interval is too wide to choose anything by."""
    validation, score = evidence.validation, get_final_score(evidence)
    if validation is None or score is None:
        return None
    low, high = compute_wilson_interval(score.num_correct, score.count)
    if high - low <= MAX_INTERVAL:
        return None
    total, value = validation.num_images, format_percent(score.value)
    images, option = format_count(total, "validation image"), suggest_division(evidence)
    remedy = (
        "Let each image be validated once by a cross-validation:"
        if option
        else "All folds together have more validation images, and only more images are enough."
    )
    interval = f"may be anything from {format_percent(low)} to {format_percent(high)}"
    if score.is_average_precision:
        start = f"The mean average precision of {images} is {value}, and {interval}"
    else:
        start = f"Of {images} {score.num_correct:,} are correct: the accuracy of {value} {interval}"
    return Finding(
        rule="small_validation",
        severity="warning",
        title="Validation set too small to trust",
        sentence=(
            f"{start} (95% interval), so that differences between runs and epochs are mostly "
            f"chance."
        ),
        numbers={
            "validation_images": total,
            score.name: score.value,
            "interval_low": low,
            "interval_high": high,
        },
        remedy=remedy,
        option=option,
    )


def find_leaks(evidence: RunEvidence) -> Finding | None:
    """Find validation images with a duplicate in the training images."""
    data, validation = evidence.data, evidence.validation
    if not data.num_leaked or not data.num_val:
        return None
    fraction = data.num_leaked / data.num_val
    width, score = 0.0, get_final_score(evidence)
    if score is not None:
        low, high = compute_wilson_interval(score.num_correct, score.count)
        width = high - low
    # leaked images change the accuracy by at most their fraction, and an average precision by about
    # as much
    severity: Severity = (
        "problem" if fraction > width else "warning" if fraction > width / 2 else "info"
    )
    without = None if validation is None else validation.accuracy_without_leaks
    inflated = (
        "the mean average precision is too high"
        if data.is_multi_label
        else "the accuracy is too high by up to as much"
    )
    effect = "" if without is None else f" Without them, accuracy is {format_percent(without)}."
    return Finding(
        rule="leaks",
        severity=severity,
        title="Leaks: validation images are in the training images, too",
        sentence=(
            f"{data.num_leaked:,} of {format_count(data.num_val, 'validation image')} "
            f"({format_percent(fraction)}) have a duplicate in the training images, such as "
            f"{data.leaked_example}: {inflated}.{effect}"
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
    if row is None:
        return None
    val, train = get_val_score(evidence, row), get_train_score(evidence, row)
    if val is None or train is None:
        return None
    low = compute_difference_interval(val.num_correct, val.count, train.num_correct, train.count)[0]
    # labels that more of the validation images have are easier to rank there
    low -= max(0.0, compute_val_chance(evidence) - compute_chance(evidence))
    if low <= 0:
        return None
    images, option = format_count(data.num_val, "validation image"), suggest_division(evidence)
    sample = f"{format_count(data.num_train_eval, 'training image')} that are measured alike"
    compared = (
        f"that of {sample} only {format_percent(train.value)}"
        if val.is_average_precision
        else f"only {format_percent(train.value)} of {sample}"
    )
    return Finding(
        rule="easier_validation",
        severity="warning",
        title="Validation is easier than training",
        sentence=(
            f"{val.describe(images)}, but {compared}: at least {format_percent(low)} more "
            f"({CONFIDENCE:.0%} confidence). The splits differ: wrong labels in training, "
            f"duplicates that were not found, or easier photos."
        ),
        numbers={
            f"val_{val.name}": val.value,
            f"train_{train.name}": train.value,
            "difference_lower_end": low,
            "validation_images": data.num_val,
            "training_images": data.num_train_eval,
        },
        remedy="See whether it is so for other divisions of the images, too:"
        if option
        else "See whether it is so in the other folds, too.",
        option=option,
    )
