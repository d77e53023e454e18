"""Results of a finished run as trackers receive them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.builders import Training
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.commands.fit.finalize import FinalEvaluation
from finetune.commands.report.photos.augmented_sheet import draw_augmented_sheet
from finetune.commands.report.run_session import read_sessions
from finetune.data.images.decode import decode_image
from finetune.data.manifest import Manifest
from finetune.errors import DataError
from finetune.report.reliability import measure_reliability
from finetune.system.run_folder import RunFolder
from finetune.training.loggers.tracked_records import (
    MAX_PICTURES,
    Cell,
    Picture,
    ReliabilityCurve,
    RunResults,
    TrackedBundle,
    TrackedTable,
)
from finetune.types import ReadOptions, Sample, Split

_MAX_SIDE = 384
"""Longer side of a logged photo, in pixels."""

_MISTAKE_COLUMNS = (
    "number", "image", "actual", "predicted", "probability of predicted", "probability of actual",
)  # fmt: skip

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
        if has_images and not manifest.is_multi_label and split is _choose_split(evaluation):
            name = f"worst_mistakes/{split.value}"
            pictures[name], tables[name] = _show_mistakes(
                manifest, samples, probabilities_NK, training.config.data.read_options
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


def _show_mistakes(
    manifest: Manifest, samples: Sequence[Sample], probabilities_NK: Any, options: ReadOptions
) -> tuple[list[Picture], TrackedTable]:
    """Return the mistakes with the least probability of the true class, as photos and as a table.

    The number of a row is that of its photo, which is logged once.
    """
    target_N = np.asarray(manifest.encode_labels(samples))
    predicted_N = probabilities_NK.argmax(axis=1)
    of_actual_N = probabilities_NK[np.arange(len(samples)), target_N]
    wrong = np.flatnonzero(predicted_N != target_N)
    order = wrong[np.argsort(of_actual_N[wrong], kind="stable")]
    pictures: list[Picture] = []
    rows: list[list[Cell]] = []
    for place in order[:MAX_PICTURES]:
        sample = samples[place]
        number, predicted = len(rows) + 1, manifest.classes[predicted_N[place]]
        with suppress(DataError, OSError):  # deleted or damaged since it was evaluated
            image = decode_image(
                manifest.root / sample.path, options=replace(options, num_channels=3, bit_depth=8)
            )
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            caption = f"{number}: {sample.label}, predicted {predicted}"
            pictures.append(Picture(image, caption))
            rows.append(
                [
                    number,
                    sample.path,
                    sample.label,
                    predicted,
                    float(probabilities_NK[place, predicted_N[place]]),
                    float(of_actual_N[place]),
                ]
            )
    return pictures, TrackedTable(_MISTAKE_COLUMNS, rows)


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
