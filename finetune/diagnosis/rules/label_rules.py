"""Rules on the labels: duplicates of other classes, label errors."""

from statistics import NormalDist

from finetune.diagnosis.certainty import CONFIDENCE
from finetune.diagnosis.evidence import LabelError, RunEvidence, ValidationEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.rules.label_noise_rule import find_noisy_labels
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MAX_CONFLICTING = 0.01
"""Fraction of images with a duplicate of another class, and so at least half of them wrong."""

MIN_NOISE_GAIN = NormalDist().inv_cdf(CONFIDENCE) ** 2 / 2
"""Gain in log likelihood by wrong labels that is chance in one of a hundred runs at most.

Twice the gain has half the chi-squared distribution of one degree of freedom where all labels are
right, as a fraction cannot be negative (Chernoff 1954, https://doi.org/10.1214/aoms/1177728725).
"""

MIN_WITNESS = 0.5
"""Accuracy from which a model is a witness against labels: one with few training images is sure of
wrong predictions, too."""

MAX_LABEL_PROBABILITY = 0.05
"""Probability of a label by the audit below which its prediction is sure enough to confirm another.

The audit lists labels from about one half on: its heads and the network have features in common.
"""

_NUM_EXAMPLES = 2
_SMOOTHING = 0.2


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
    """Find labels that contradict the model as often where it is sure as elsewhere."""
    validation = evidence.validation
    if evidence.data.is_multi_label:
        return find_noisy_labels(evidence)
    if validation is None or not validation.num_images:
        return None
    errors = {error.path: error for error in evidence.data.label_errors or ()}
    confirmed = [
        errors[path]
        for path, predicted in validation.mistakes.items()
        if path in errors
        and errors[path].predicted_label == predicted
        and errors[path].label_probability < MAX_LABEL_PROBABILITY
    ]
    if not _is_noisy(validation):
        return _describe_candidates(evidence, confirmed)
    noise = validation.label_noise
    assert noise is not None, "is noisy"
    return Finding(
        rule="label_errors",
        severity="warning",
        title=f"About {format_percent(noise.fraction, decimals=0)} of the labels are wrong",
        sentence=(
            f"Of {format_count(noise.num_images, 'validation image')}, probably "
            f"{format_percent(noise.fraction)} have a wrong label: they contradict predictions "
            f"that are sure (log likelihood {noise.log_likelihood_gain:.1f} above that of right "
            f"labels; up to {MIN_NOISE_GAIN:.1f} is chance). "
            f"{_name_examples(confirmed, validation)}"
        ),
        numbers={
            "wrong_fraction": noise.fraction,
            "log_likelihood_gain": noise.log_likelihood_gain,
            "validation_images": noise.num_images,
            "mistakes": len(validation.mistakes),
            "confirmed_by_audit": len(confirmed),
            "label_errors_of_audit": len(errors),
        },
        remedy="Correct them: audit.csv in the run folder lists likely label errors of all images. "
        "Until then, insist less on every label:",
        option=_suggest_smoothing(evidence),
    )


def _suggest_smoothing(evidence: RunEvidence) -> str:
    """Return the option of more label smoothing; empty for a loss that has none."""
    present = evidence.settings.get("loss.label_smoothing")
    is_free = isinstance(present, int | float) and present < _SMOOTHING
    has_smoothing = evidence.settings.get("loss.name") == "cross_entropy"
    return f"loss.label_smoothing={_SMOOTHING}" if is_free and has_smoothing else ""


def _is_noisy(validation: ValidationEvidence) -> bool:
    """Return whether wrong labels explain the mistakes better than an unsure model does."""
    noise, correct = validation.label_noise, validation.num_correct
    if noise is None or correct is None or noise.log_likelihood_gain <= MIN_NOISE_GAIN:
        return False
    # a model that is wrong as often as right is no witness
    low = compute_wilson_interval(correct, validation.num_images, confidence=CONFIDENCE)[0]
    return low > MIN_WITNESS


def _describe_candidates(evidence: RunEvidence, confirmed: list[LabelError]) -> Finding | None:
    """Return the note on labels that heads contradict, which need not be wrong; None without any.

    Args:
        evidence: Numbers of the run.
        confirmed: Those of them that the network contradicts in the same way.
    """
    data, validation = evidence.data, evidence.validation
    count = len(data.label_errors or ())
    if not count or validation is None:
        return None
    accuracy = data.check_accuracy
    heads = (
        "heads"
        if accuracy is None
        else f"heads that predict {format_percent(accuracy)} of "
        f"{format_count(data.num_checked, 'image')} as labelled"
    )
    same = (
        f" The network contradicts {len(confirmed)} of them in the same way: "
        f"{_list_examples(confirmed)}."
        if confirmed
        else ""
    )
    return Finding(
        rule="label_errors",
        severity="info",
        title=f"{format_count(count, 'label')} to check",
        sentence=(
            f"{format_count(count, 'label')} {'is' if count == 1 else 'are'} contradicted by "
            f"{heads}. Where heads are wrong, labels are contradicted that are right.{same}"
        ),
        numbers={
            "label_errors_of_audit": count,
            "confirmed_by_network": len(confirmed),
            "mistakes": len(validation.mistakes),
            **({} if accuracy is None else {"accuracy_of_heads": accuracy}),
        },
        remedy="Look at them in audit.csv of the run folder.",
    )


def _name_examples(confirmed: list[LabelError], validation: ValidationEvidence) -> str:
    if confirmed:
        return (
            f"The audit contradicts {len(confirmed)} of {len(validation.mistakes)} mistakes in "
            f"the same way: {_list_examples(confirmed)}."
        )
    return f"The least probable labels: {', '.join(list(validation.mistakes)[:_NUM_EXAMPLES])}."


def _list_examples(errors: list[LabelError]) -> str:
    names = [f"{error.path} (rather {error.predicted_label})" for error in errors]
    more = "" if len(names) <= _NUM_EXAMPLES else " and others"
    return ", ".join(names[:_NUM_EXAMPLES]) + more
