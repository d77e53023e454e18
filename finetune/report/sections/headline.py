"""First section: what was trained on what, how well it does, and what is shipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report.kept_weights import describe_kept_weights
from finetune.report.label_metrics_intervals import measure_label_intervals
from finetune.report.number_formats import format_interval, format_metric, format_metric_name
from finetune.report.run_facts import RunFacts
from finetune.report.split_metrics import measure_split
from finetune.units import format_count, format_millions

OUT_OF_FOLD = "out_of_fold"
_IMAGE_MEANS = ("accuracy", "subset_accuracy", "loss")
_SPLIT_NAMES = {
    "train": "training",
    "val": "validation",
    "test": "test",
    OUT_OF_FOLD: "held-out",
}


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """Number that stands out, with what it counts and a remark."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """Summary of a run.

    Attributes:
        sentence: The result in one sentence.
        figures: Numbers that stand out, the most important one first.
        shipped: Sentence on the weights of the bundle; empty while there is none.
        notes: Further sentences, such as on a run that stopped early.
    """

    sentence: str
    figures: tuple[KeyFigure, ...]
    shipped: str
    notes: tuple[str, ...] = ()


def name_split(split: str) -> str:
    """Return the adjective of a split: training, validation, test or held-out."""
    base = split.removesuffix("_without_leaks")
    name = _SPLIT_NAMES.get(base, base)
    return f"{name}, without leaked" if base != split else name


def choose_main_split(facts: RunFacts) -> str | None:
    """Return the split that a run is judged by: test, out of fold or val; None without metrics."""
    known = get_metrics(facts)
    order = {"val": ("val", OUT_OF_FOLD), "test": ("test",)}.get(
        facts.chosen_split or "", ("test", OUT_OF_FOLD, "val")
    )
    return next((split for split in order if split in known), None)


def get_metrics(facts: RunFacts) -> Mapping[str, Mapping[str, float | None]]:
    """Return the metrics of the final model by split, with those of all folds together."""
    metrics: dict[str, Any] = dict(facts.facts.get("metrics") or {})
    if facts.folds is not None:
        metrics[OUT_OF_FOLD] = facts.folds["out_of_fold"]["metrics"]
    return metrics


def get_evaluation(facts: RunFacts, split: str) -> Mapping[str, Any]:
    """Return the statistics of a split besides its metrics; empty if there are none."""
    if split == OUT_OF_FOLD:
        return {} if facts.folds is None else facts.folds["out_of_fold"]
    evaluation: Mapping[str, Any] = (facts.facts.get("evaluations") or {}).get(split, {})
    return evaluation


def find_interval(facts: RunFacts, split: str, metric: str) -> Sequence[float] | None:
    """Return the 95% interval of a metric; None if it is unknown.

    That of the accuracy is Wilson's, stored with the metrics; others are computed from predictions.
    Of held-out images of all folds there is that of the folds: each image has another network.
    """
    if split == OUT_OF_FOLD:
        # means over images are those over folds; those over classes are not
        folds = (facts.folds or {}).get("metrics") or {}
        of_folds = (folds.get(metric) or {}).get("interval") if metric in _IMAGE_MEANS else None
        return None if of_folds is None else tuple(of_folds)
    if metric == "accuracy":
        stored: Sequence[float] | None = get_evaluation(facts, split).get("accuracy_interval")
        return stored
    predictions = facts.predictions.get(split)
    if predictions is None:
        return None
    if predictions.target.ndim == 2:
        thresholds = tuple(facts.card.get("thresholds") or ())
        if len(thresholds) != len(facts.classes):
            return None
        return measure_label_intervals(predictions, thresholds).get(metric)
    rarest = (get_evaluation(facts, split).get("rarest_third") or {}).get("classes", ())
    index = {name: number for number, name in enumerate(facts.classes)}
    measured = measure_split(predictions, tuple(index[one] for one in rarest if one in index))
    return measured.intervals.get(metric)


def build_headline(facts: RunFacts) -> Headline:
    """Return the summary of a run."""
    split, metric = choose_main_split(facts), facts.monitor
    noun = "label" if facts.is_multi_label else "class"
    figures = [] if split is None else _describe_result(facts, split, metric)
    figures += [
        KeyFigure("Labels" if facts.is_multi_label else "Classes", format_count(len(facts.classes)))
    ]
    if facts.num_images:
        total = sum(facts.num_images.values())
        parts = [f"{format_count(n)} {name}" for name, n in facts.num_images.items() if n]
        figures.append(KeyFigure("Images", format_count(total), ", ".join(parts)))
    num_parameters = facts.find_session_value("num_parameters")
    if num_parameters:
        figures.append(KeyFigure("Parameters", format_millions(int(num_parameters))))
    num_classes = format_count(len(facts.classes), noun)
    trained = (
        f"{get_backbone(facts)} was trained on "
        f"{format_count(facts.num_images.get('train', 0), 'image')} of {num_classes}"
        if facts.num_images.get("train")
        else f"{get_backbone(facts)} for {num_classes}"
    )
    sentence = f"{trained}{_describe_score(facts, split, metric)}."
    if split == OUT_OF_FOLD:
        sentence = _describe_folds(facts, num_classes, metric)
    return Headline(
        sentence,
        tuple(figures),
        describe_kept_weights(facts),
        tuple(_collect_notes(facts)),
    )


def _describe_folds(facts: RunFacts, num_classes: str, metric: str) -> str:
    """Return the result of the folds, which is not one of the networks that the bundle holds."""
    num_folds = len((facts.folds or {}).get("folds") or ())
    value = get_metrics(facts)[OUT_OF_FOLD].get(metric)
    score = (
        f"classify {format_metric(value, metric)} of the images that each holds out correctly"
        if metric == "accuracy"
        else f"reach a {_name_in_sentence(metric)} of {format_metric(value, metric)} on the images "
        f"that each holds out"
    )
    model = "ensemble" if facts.members else "network that the bundle holds"
    rest = f"; the {model} itself is not measured" if facts.card else ""
    backbone = get_backbone(facts)
    return f"The {backbone} networks of {num_folds} folds, for {num_classes}, {score}{rest}."


def get_backbone(facts: RunFacts) -> str:
    """Return the name of the network."""
    return str(facts.card.get("backbone") or facts.config.get("model.backbone") or "A network")


def _describe_result(facts: RunFacts, split: str, metric: str) -> list[KeyFigure]:
    value = get_metrics(facts)[split].get(metric)
    interval = find_interval(facts, split, metric)
    remark = f"{name_split(split)} images"
    if interval is not None:
        remark = f"95% interval {format_interval(interval, metric)}, {remark}"
    return [KeyFigure(format_metric_name(metric), format_metric(value, metric), remark)]


def _describe_score(facts: RunFacts, split: str | None, metric: str) -> str:
    if split is None:
        return "; it has not been evaluated yet"
    value = get_metrics(facts)[split].get(metric)
    num_images = get_evaluation(facts, split).get("num_images")
    images = f"{name_split(split)} images"
    if num_images:
        images = f"{format_count(int(num_images))} {name_split(split)} image"
        images += "" if num_images == 1 else "s"
    if metric == "accuracy" and value is not None:
        return f" and classifies {format_metric(value, metric)} of {images} correctly"
    return (
        f" and reaches a {_name_in_sentence(metric)} of {format_metric(value, metric)} on {images}"
    )


def _name_in_sentence(metric: str) -> str:
    name = format_metric_name(metric)
    return name[0].lower() + name[1:] if name[1:2].islower() else name


def _collect_notes(facts: RunFacts) -> list[str]:
    notes = []
    early_stop = facts.facts.get("early_stop")
    if early_stop and early_stop.get("epoch"):
        notes.append(f"Training stopped early, after epoch {early_stop['epoch']}.")
    if not facts.card:
        notes.append("The run is not finished: there is no bundle yet.")
    return notes
