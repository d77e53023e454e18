"""Rules on classes: never predicted, no better than the most frequent, rare ones, confused ones."""

import math

from finetune.diagnosis.certainty import CONFIDENCE, compute_binomial_tail
from finetune.diagnosis.evidence import ClassRow, RunEvidence, ValidationEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.suggestions import suggest_balance, suggest_epochs
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

RARE_FRACTION = 0.5
"""Training images of a rare class relative to the mean of the classes."""

SKEWED_FACTOR = 1.5
"""Images of the most frequent class relative to the mean, from which its size may decide."""

_MAX_NAMES = 3


def find_no_better_than_guessing(evidence: RunEvidence) -> Finding | None:
    """Find an accuracy that always predicting the most frequent class would have, too."""
    validation = evidence.validation
    if validation is None or validation.num_correct is None or len(validation.classes) < 2:
        return None
    total = validation.num_images
    largest = max(validation.classes, key=lambda row: row.support)
    low, high = compute_wilson_interval(validation.num_correct, total, confidence=CONFIDENCE)
    guess = largest.support / total
    # few images do not tell a good model from guessing, either
    if low > guess or high > (1 + guess) / 2:
        return None
    accuracy = validation.num_correct / total
    loss = validation.metrics.get("loss")
    guess_loss = _compute_prior_loss(validation)
    is_skewed = largest.support * len(validation.classes) > SKEWED_FACTOR * total
    is_loss_low = loss is not None and loss < guess_loss and is_skewed
    seen = "" if loss is None else f" The log loss is {loss:.4f}, that of the class frequencies "
    seen += "" if loss is None else f"{guess_loss:.4f}"
    return Finding(
        rule="no_better_than_guessing",
        severity="problem",
        title="No better than always predicting the most frequent class",
        sentence=(
            f"{format_percent(accuracy)} of {format_count(total, 'validation image')} are correct; "
            f"always predicting {largest.name} has {format_percent(guess)}.{seen}"
            + (
                ": the network knows more than its predictions show, which the class frequencies "
                "decide."
                if is_loss_low
                else "."
                if seen
                else ""
            )
        ),
        numbers={
            "accuracy": accuracy,
            "lower_end": low,
            "upper_end": high,
            "most_frequent_class": guess,
            **({} if loss is None else {"loss": loss, "loss_of_frequencies": guess_loss}),
        },
        remedy="Give rare classes more weight:" if is_loss_low else "Train for more epochs:",
        option=suggest_balance(evidence) if is_loss_low else suggest_epochs(evidence),
    )


def _compute_prior_loss(validation: ValidationEvidence) -> float:
    """Return the log loss of predicting the class frequencies of the validation images."""
    parts = [row.support / validation.num_images for row in validation.classes if row.support]
    return -sum(part * math.log(part) for part in parts)


def find_classes_never_predicted(evidence: RunEvidence) -> Finding | None:
    """Find classes with validation images that the model predicts for none."""
    validation = evidence.validation
    if validation is None or not validation.num_images:
        return None
    correct = sum(row.num_correct for row in validation.classes)
    total = sum(row.support for row in validation.classes)
    if not total:
        return None
    usual = compute_wilson_interval(correct, total, confidence=CONFIDENCE)[0]
    missing = [row for row in validation.classes if row.support and not row.num_predicted]
    # with few images of a class, none of them being found may be chance
    certain = [
        row
        for row in missing
        if compute_wilson_interval(0, row.support, confidence=CONFIDENCE)[1] < usual
    ]
    if not certain:
        return None
    mean = sum(row.train_images or 0 for row in validation.classes) / len(validation.classes)
    is_rare = all((row.train_images or 0) < mean for row in certain)
    option = suggest_balance(evidence) if is_rare else suggest_epochs(evidence)
    names = ", ".join(
        f"{row.name} ({format_count(row.support, 'validation image')}"
        + ("" if row.train_images is None else f", {row.train_images:,} for training")
        + ")"
        for row in certain[:_MAX_NAMES]
    )
    more = len(certain) - _MAX_NAMES
    is_label = evidence.data.is_multi_label
    what = "label" if is_label else "class"
    plural = f"{len(certain)} {what}{'' if len(certain) == 1 else 's' if is_label else 'es'}"
    return Finding(
        rule="class_never_predicted",
        severity="warning",
        title=f"{plural} never predicted",
        sentence=(
            f"Never predicted: {names}{f' and {more} more' if more > 0 else ''}, although "
            f"{format_percent(correct / total)} of all {'labels' if is_label else 'images'} are "
            f"found."
        ),
        numbers={
            "classes": len(certain),
            "names": ", ".join(row.name for row in certain[:_MAX_NAMES]),
            "recall_of_all": correct / total,
        },
        remedy="Give rare classes more weight, or add images of them:"
        if is_rare and option
        else "Add images of them."
        if is_rare
        else "Train for more epochs:",
        option=option,
    )


def find_weak_rare_classes(evidence: RunEvidence) -> Finding | None:
    """Find rare classes that are recognised clearly less often than the other images."""
    validation = evidence.validation
    if validation is None or evidence.data.is_multi_label or len(validation.classes) < 2:
        return None
    rows = [row for row in validation.classes if row.train_images is not None and row.support]
    mean = sum(row.train_images or 0 for row in rows) / max(1, len(rows))
    correct, total = sum(r.num_correct for r in rows), sum(r.support for r in rows)
    if not total:
        return None
    usual = compute_wilson_interval(correct, total, confidence=CONFIDENCE)[0]
    weak = [
        row
        for row in rows
        if (row.train_images or 0) < RARE_FRACTION * mean
        and row.num_predicted
        and _compute_upper_recall(row) < usual
    ]
    if not weak:
        return None
    worst = min(weak, key=lambda row: row.num_correct / row.support)
    option = suggest_balance(evidence)
    return Finding(
        rule="weak_rare_class",
        severity="warning",
        title=f"Rare classes are missed: {', '.join(row.name for row in weak[:_MAX_NAMES])}",
        sentence=(
            f"Of {format_count(worst.support, 'validation image')} of {worst.name} "
            f"{worst.num_correct:,} are recognised, of all images "
            f"{format_percent(correct / total)}; it has {worst.train_images:,} training images, "
            f"the mean of the classes is {mean:.0f}."
        ),
        numbers={
            "class": worst.name,
            "recall": worst.num_correct / worst.support,
            "recall_of_all": correct / total,
            "train_images": worst.train_images or 0,
            "mean_train_images": round(mean, 1),
        },
        remedy="Give rare classes more weight, or add images of them:"
        if option
        else "Add images of them.",
        option=option,
    )


def _compute_upper_recall(row: ClassRow) -> float:
    return compute_wilson_interval(row.num_correct, row.support, confidence=CONFIDENCE)[1]


def find_confused_pair(evidence: RunEvidence) -> Finding | None:
    """Find the two classes that are confused most, if by more than chance."""
    validation = evidence.validation
    if validation is None or len(validation.confusion) < 3:
        return None
    counts, num_classes = validation.confusion, len(validation.confusion)
    pairs = {(i, j): counts[i][j] + counts[j][i] for i in range(num_classes) for j in range(i)}
    mistakes = sum(pairs.values())
    (one, other), count = max(pairs.items(), key=lambda item: item[1])
    # Bonferroni: the largest of all pairs was looked for
    p_value = min(1.0, len(pairs) * compute_binomial_tail(count, mistakes, 1 / len(pairs)))
    if not mistakes or p_value > 1 - CONFIDENCE:
        return None
    first, second = validation.classes[other].name, validation.classes[one].name
    forth, back = counts[other][one], counts[one][other]
    return Finding(
        rule="confused_pair",
        severity="info",
        title=f"{first} and {second} are confused most",
        sentence=(
            f"{count:,} of {format_count(mistakes, 'mistake')} are between {first} and {second}: "
            f"{forth:,} images of {first} are taken for {second}, and {back:,} the other way "
            f"round."
        ),
        numbers={
            "mistakes_of_pair": count,
            "mistakes": mistakes,
            "first": first,
            "second": second,
            "p_value": p_value,
        },
        remedy="Check their labels, and add images that show the difference.",
    )
