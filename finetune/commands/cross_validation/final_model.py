"""Model of a cross-validation, with its bundle: the ensemble of the folds, or a network of its own.

The members of an ensemble keep their temperatures, which their folds have fitted. A temperature of
the ensemble would need images that no member has trained on; there are none but test images.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import ModelBundle, combine_models, load_model, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.label_card import mark_fold_thresholds
from finetune.bundle.validation_choices import FOLD_CHOICES_KEY
from finetune.commands.cross_validation.fold_runs import CrossValidation
from finetune.commands.cross_validation.out_of_fold import count_images
from finetune.commands.fit.finalize import WITHOUT_LEAKS_SUFFIX, save_predictions
from finetune.commands.target_prior import prior_to_json
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import (
    details_to_json,
    evaluate_targets,
    metrics_to_json,
)
from finetune.types import Reporter, Split

OUT_OF_FOLD = "out_of_fold"
"""Name of the images that folds hold out, in place of a split."""

_EVAL_BATCH_SIZE = 32


def write_final_model(
    cross_validation: CrossValidation,
    summary: Mapping[str, Any],
    reporter: Reporter,
    *,
    thresholds: tuple[float, ...] | None = None,
    refitted: ModelBundle | None = None,
) -> dict[str, Any]:
    """Write the bundle of a cross-validation, and return the facts on its card.

    Before it, the probabilities of the test images, for the report. Its metrics are those of its
    folds on the images that they hold out, and its own on test images.

    Args:
        cross_validation: Complete folds.
        summary: Summary of the folds.
        reporter: Receiver of progress.
        thresholds: Threshold of each label of multi-label images, chosen on all held-out images,
            for the members of an ensemble; None for one class of each image.
        refitted: Network that was trained on all images; None writes the ensemble of the folds.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    folder = cross_validation.run.bundle_dir
    runs = cross_validation.fold_runs
    members = [_set_thresholds(load_model(run.path), thresholds) for run in runs if not refitted]
    # each image has trained most of the members
    images = {"train_images": count_images(cross_validation)}
    model = refitted or combine_models(members, facts=images, source=folder)
    prior = prior_to_json(model.card, requested=None)
    pooled = dict(summary[OUT_OF_FOLD])
    metrics = {OUT_OF_FOLD: pooled.pop("metrics")}
    chosen = dict.fromkeys(
        text for fold in summary["folds"] for text in fold.get("validation_choices", ())
    )
    evaluations = {OUT_OF_FOLD: {"prior": prior, **pooled, FOLD_CHOICES_KEY: list(chosen)}}
    predictor = _build_predictor(model, cross_validation)
    for name, rows in _select_test_rows(cross_validation).items():
        logits, targets = _predict_logits(predictor, cross_validation, rows, reporter)
        tested = evaluate_targets(predictor, logits, targets)
        if name == Split.TEST.value:
            probabilities = predictor.compute_probabilities(logits)
            save_predictions(cross_validation.run, Split.TEST, probabilities)
        metrics[name] = metrics_to_json(tested)
        evaluations[name] = {"prior": prior, **details_to_json(tested)}
    facts = {
        **images,
        "metrics": metrics,
        "evaluations": evaluations,
        "cross_validation": {
            key: summary[key] for key in ("num_folds", "num_images", "method", "metrics", "final")
        },
    }
    if refitted is None:
        save_ensemble(model.members, folder, facts=facts)
    else:
        card = replace(model.card, facts={**model.card.facts, **facts})
        save_bundle(model.network, card, folder)
    return dict(load_model(folder).card.facts)


def _set_thresholds(model: ModelBundle, thresholds: tuple[float, ...] | None) -> ModelBundle:
    """Return a model with thresholds of its labels that all folds chose; unchanged for None."""
    if thresholds is None:
        return model
    facts = mark_fold_thresholds(model.card.facts)
    return replace(model, card=replace(model.card, thresholds=thresholds, facts=facts))


def _select_test_rows(cross_validation: CrossValidation) -> dict[str, list[int]]:
    """Return the rows of the test images to evaluate, by name; without leaked ones, too."""
    manifest = cross_validation.manifest
    samples = manifest.get_samples(Split.TEST)
    if not samples:
        return {}
    clean = find_rows_without_leaks(manifest, manifest.resolve_paths(samples))
    name = Split.TEST.value
    rows = {name: list(range(len(samples)))}
    return rows if clean is None else {**rows, f"{name}{WITHOUT_LEAKS_SUFFIX}": clean}


def _build_predictor(model: ModelBundle, cross_validation: CrossValidation) -> Predictor:
    config = cross_validation.config
    return Predictor(
        model,
        device=config.trainer.accelerator,
        batch_size=_EVAL_BATCH_SIZE,
        num_workers=int(config.data.num_workers),
        options=config.data.read_options,
    )


def _predict_logits(
    predictor: Predictor, cross_validation: CrossValidation, rows: list[int], reporter: Reporter
) -> tuple[Tensor, NDArray[Any]]:
    """Return the logits of some test images, shape (N, V, K), and their targets."""
    manifest = cross_validation.manifest
    tested = manifest.get_samples(Split.TEST)
    samples = [tested[row] for row in rows]
    reporter.start("evaluating on test", len(samples))
    logits = predictor.predict_logits(manifest.resolve_paths(samples), on_batch=reporter.advance)
    reporter.finish()
    return logits, manifest.encode_targets(samples)
