"""Checks that images with any number of labels have some, where a metric of labels judges them."""

from collections.abc import Mapping, Sequence

from finetune.builders import Training
from finetune.errors import DataError
from finetune.evaluation.multi_label.label_metrics import METRICS_OF_LABELS
from finetune.types import Sample, Split
from finetune.units import format_count

_REMEDY = "set checkpoint.monitor=calibrated_loss"


def check_some_label(
    samples: Sequence[Sample], noun: str, *, effect: str, remedy: str, clause: str = ""
) -> None:
    """Check that one of some images has a label.

    Args:
        samples: Images, which each have any number of labels.
        noun: What they are, in the singular, as in "validation image".
        effect: What cannot be computed then, as a clause.
        remedy: What to do, as a sentence.
        clause: Which of them are meant, as in " that fold 1 holds out".

    Raises:
        DataError: None has.
    """
    if not any(sample.class_names for sample in samples):
        raise DataError(
            f"None of the {format_count(len(samples), noun)}{clause} has a label, so that "
            f"{effect}. {remedy}"
        )


def check_monitor_labels(
    training: Training, folds: Mapping[int, Sequence[Sample]] | None = None
) -> None:
    """Check that the metric by which the best epoch is chosen is defined.

    Average precision and F1 are not on images that all have no label.

    Args:
        training: Objects of a run.
        folds: Images that each fold holds out, where several runs share the settings; None for the
            validation images of the run.

    Raises:
        DataError: The metric is undefined; the message names the fold, the metric and a remedy.
    """
    monitor = training.config.checkpoint.monitor
    is_judged = training.manifest.is_multi_label and not training.is_probe_only
    if monitor not in METRICS_OF_LABELS or not is_judged:
        return
    reason = training.reasons.get("checkpoint.monitor", "")
    effect = (
        f"checkpoint.monitor={monitor}{f' ({reason})' if reason else ''}, which chooses the best "
        f"epoch, is undefined"
    )
    if folds is not None:
        fewer = "use fewer folds (--folds), or " if len(folds) > 2 else ""
        remedy = f"{fewer}{_REMEDY}.".capitalize()
        for fold, samples in folds.items():
            clause = f" that fold {fold} holds out"
            check_some_label(samples, "image", effect=effect, remedy=remedy, clause=clause)
    elif samples := training.manifest.get_samples(Split.VAL):
        remedy = f"Add validation images with labels, or {_REMEDY}."
        check_some_label(samples, "validation image", effect=effect, remedy=remedy)
