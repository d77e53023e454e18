"""Results of a finished run as trackers receive them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from finetune.builders import Training
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.commands.fit.finalize import FinalEvaluation
from finetune.commands.fit.run_tracking.worst_mistakes import (
    Mistake,
    list_class_mistakes,
    list_label_mistakes,
    show_mistakes,
)
from finetune.commands.report.photos.augmented_sheet import draw_augmented_sheet
from finetune.commands.report.run_session import read_sessions
from finetune.data.manifest import Manifest
from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.report.reliability import measure_reliability
from finetune.system.run_folder import RunFolder
from finetune.training.loggers.tracked_records import (
    Picture,
    ReliabilityCurve,
    RunResults,
    TrackedBundle,
    TrackedTable,
)
from finetune.types import Sample, Split

# shape suffixes: N images, K classes


def build_results(run: RunFolder, training: Training, evaluation: FinalEvaluation) -> RunResults:
    """Return the results of a finished run, with its worst mistakes as photos and as a table.

    Args:
        run: Run folder with its bundle and report.
        training: Objects of the run; its manifest is the one that was evaluated.
        evaluation: Evaluation of the best model.
    """
    has_images = training.config.tracking.images == "on"
    reliability: dict[str, ReliabilityCurve] = {}
    pictures: dict[str, Sequence[Picture]] = {}
    tables: dict[str, TrackedTable] = {}
    manifest = training.manifest
    for split, probabilities in evaluation.probabilities.items():
        samples = manifest.get_samples(split)
        probabilities_NK = probabilities.double().numpy()
        target = manifest.encode_targets(samples)
        bins = measure_reliability(probabilities_NK, target).bins
        reliability[split.value] = ReliabilityCurve(
            [one.confidence for one in bins],
            [one.accuracy for one in bins],
            [one.count for one in bins],
        )
        if has_images and split is _choose_split(evaluation):
            name = f"worst_mistakes/{split.value}"
            mistakes = _list_mistakes(evaluation, split, manifest, samples, probabilities_NK)
            pictures[name], tables[name] = show_mistakes(
                mistakes, manifest.root, training.config.data.read_options
            )
    if has_images and not training.is_probe_only:
        pictures["augmented_images"] = _show_augmentation(training)
    has_report = has_images and run.report_path.is_file()
    return RunResults(
        evaluations=evaluation.evaluations,
        classes=manifest.classes,
        bundle=TrackedBundle(run.bundle_dir, _describe_bundle(run)),
        summary=_summarize(run, evaluation),
        pictures={name: shown for name, shown in pictures.items() if shown},
        tables={name: table for name, table in tables.items() if table.rows},
        reliability=reliability,
        report_path=run.report_path if has_report else None,
    )


def _show_augmentation(training: Training) -> list[Picture]:
    """Return a sheet of training images with their augmentation; none if nothing changes them."""
    spec = ModelCard.from_json(training.module.card).spec
    dataset = training.datamodule.train_dataset
    sheet = draw_augmented_sheet(dataset, spec, seed=training.config.seed)
    caption = "left: as validation sees the image; then augmented views"
    return [] if sheet is None else [Picture(sheet, caption)]


def _choose_split(evaluation: FinalEvaluation) -> Split | None:
    """Return the validation split, or that of the test images where there is none."""
    return next((split for split in Split if split in evaluation.probabilities), None)


def _list_mistakes(
    evaluation: FinalEvaluation,
    split: Split,
    manifest: Manifest,
    samples: Sequence[Sample],
    probabilities_NK: Any,
) -> Iterator[Mistake]:
    """Return the mistakes of a split, the worst first."""
    found = evaluation.evaluations[split.value]
    if isinstance(found, MultiLabelEvaluation):
        thresholds = [label.threshold for label in found.per_label]
        target_NK = np.asarray(manifest.encode_targets(samples), np.float64)
        return list_label_mistakes(
            samples, probabilities_NK, target_NK, classes=manifest.classes, thresholds=thresholds
        )
    target_N = np.asarray(manifest.encode_labels(samples))
    return list_class_mistakes(samples, probabilities_NK, target_N, classes=manifest.classes)


def _describe_bundle(run: RunFolder) -> dict[str, Any]:
    """Return what is known of the finished model without its files."""
    card = read_card_json(run.bundle_dir)
    facts = card.get("facts") or {}
    licenses = (session.get("weights_license") for session in read_sessions(run))
    return {
        "backbone": card.get("backbone"),
        "classes": card.get("classes"),
        "temperature": card.get("temperature"),
        "metrics": facts.get("metrics"),
        "weights": facts.get("weights"),
        "weights_license": next(filter(None, licenses), None),
    }


def _summarize(run: RunFolder, evaluation: FinalEvaluation) -> dict[str, Any]:
    """Return values of the run as a whole: an early stop, the calibration and the diagnosis."""
    values: dict[str, Any] = {}
    if evaluation.early_stop is not None:
        facts = evaluation.early_stop.to_json()
        values |= {f"early_stop/{name}": value for name, value in facts.items()}
    if evaluation.calibration is not None:
        values["calibration/temperature"] = evaluation.calibration.temperature
    for severity, count in _count_findings(run).items():
        values[f"diagnosis/{severity}"] = count
    return values


def _count_findings(run: RunFolder) -> Mapping[str, int]:
    """Return the number of findings of the diagnosis by severity; none without a diagnosis."""
    counts: dict[str, int] = {}
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(run.diagnosis_path.read_text(encoding="utf-8"))
        for finding in content["findings"]:
            counts[finding["severity"]] = counts.get(finding["severity"], 0) + 1
    return counts
