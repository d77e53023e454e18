"""Rule on wrong labels of multi-label images, which are judged label by label."""

from statistics import NormalDist

from finetune.diagnosis.certainty import CONFIDENCE
from finetune.diagnosis.evidence import ClassRow, RunEvidence
from finetune.diagnosis.finding import Finding
from finetune.diagnosis.label_noise import LabelNoise
from finetune.evaluation.significance import compute_wilson_interval
from finetune.units import format_count, format_percent

MIN_WITNESS = 0.5
"""Average precision from which a model is a witness against the values of a label."""

_MAX_NAMES = 3
_NUM_EXAMPLES = 2


def find_noisy_labels(evidence: RunEvidence) -> Finding | None:
    """Find labels that contradict the model as often where it is sure as elsewhere."""
    validation = evidence.validation
    if validation is None or not evidence.data.is_multi_label:
        return None
    judged = [(row, row.noise) for row in validation.classes if row.noise is not None]
    if not judged:
        return None
    # Bonferroni: the worst of all labels is looked for
    limit = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / len(judged)) ** 2 / 2
    noisy = [
        (row, noise)
        for row, noise in judged
        if noise.log_likelihood_gain > limit and _is_witness(row)
    ]
    if not noisy:
        return None
    noisy.sort(key=lambda pair: pair[1].fraction, reverse=True)
    worst, noise = noisy[0]
    more = len(noisy) - 1
    others = f", and so are those of {_name_labels(noisy[1:])}" if more else ""
    return Finding(
        rule="label_errors",
        severity="warning",
        title=f"About {format_percent(noise.fraction, decimals=0)} of the images have the label "
        f"{worst.name} wrong" + (f", and {format_count(more, 'other label')}" if more else ""),
        sentence=(
            f"Of {format_count(noise.num_images, 'validation image')}, probably "
            f"{format_percent(noise.fraction)} lack {worst.name} or have it by mistake: their "
            f"labels contradict predictions that are sure (log likelihood "
            f"{noise.log_likelihood_gain:.1f} above that of right labels; up to {limit:.1f} is "
            f"chance){others}.{_list_examples(evidence, worst)}"
        ),
        numbers={
            "label": worst.name,
            "wrong_fraction": noise.fraction,
            "log_likelihood_gain": noise.log_likelihood_gain,
            "validation_images": noise.num_images,
            "noisy_labels": len(noisy),
        },
        remedy="Look at the images with the least probable labels, and correct them.",
    )


def _is_witness(row: ClassRow) -> bool:
    """Return whether the model recognises a label: one that guesses contradicts right labels."""
    if row.average_precision is None or not row.support:
        return False
    count = round(row.average_precision * row.support)
    return compute_wilson_interval(count, row.support, confidence=CONFIDENCE)[0] > MIN_WITNESS


def _list_examples(evidence: RunEvidence, row: ClassRow) -> str:
    """Return a sentence on the images whose value of the label is the least probable."""
    mistakes = {} if evidence.validation is None else evidence.validation.mistakes
    paths = [path for path, label in mistakes.items() if label == row.name][:_NUM_EXAMPLES]
    return f" The least probable: {', '.join(paths)}." if paths else ""


def _name_labels(noisy: list[tuple[ClassRow, LabelNoise]]) -> str:
    names = ", ".join(
        f"{row.name} ({format_percent(noise.fraction)})" for row, noise in noisy[:_MAX_NAMES]
    )
    more = len(noisy) - _MAX_NAMES
    return f"{names} and {more} more" if more > 0 else names
