"""Calibration and evaluation of the best model of a run, and its bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from finetune.audit.leakage import find_rows_without_leaks
from finetune.builders import Training, get_micro_batch_size
from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.commands.measurement.prior_adjustment import (
    HeldOutLogits,
    PriorAdjustment,
    apply_prior_adjustment,
    choose_prior_adjustment,
    describe_prior_adjustment,
    needs_strength,
)
from finetune.commands.target_prior import prior_to_json
from finetune.data.training_data import group_samples
from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.priors import compute_logit_shift, normalize_prior
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import details_to_json, evaluate_logits, metrics_to_json
from finetune.system.files import write_file_atomically
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.early_stopping import EarlyStop
from finetune.types import Evaluation, Reporter, Split

_EVAL_BATCH_SIZE = 32

WITHOUT_LEAKS_SUFFIX = "_without_leaks"
"""Suffix of a split's name for its evaluation without leaked images."""


@dataclass(frozen=True, slots=True)
class FinalEvaluation:
    """Evaluation of the best model of a run.

    Attributes:
        evaluations: Evaluation by split, also under ``WITHOUT_LEAKS_SUFFIX`` if some of its images
            are leaked; with the temperature, and for the target prior of the run's model card.
        calibration: Calibration of the temperature; None without one.
        prior: Class prior of the probabilities, as JSON values.
        adjustment: Strength of the adjustment to another class prior that was chosen on held-out
            images; None if it is given by the config.
        early_stop: When and why training stopped before its last epoch; None if it did not.
        held_out: Class probabilities of the validation images, shape (N, K); None without any.
    """

    evaluations: Mapping[str, Evaluation]
    calibration: Calibration | None
    prior: Mapping[str, Any]
    adjustment: PriorAdjustment | None = None
    early_stop: EarlyStop | None = None
    held_out: torch.Tensor | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Facts on the model card of the bundle."""
        items = self.evaluations.items()
        return {
            "metrics": {split: metrics_to_json(evaluation) for split, evaluation in items},
            "evaluations": {
                split: {"prior": dict(self.prior), **details_to_json(evaluation)}
                for split, evaluation in items
            },
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "prior_adjustment": None if self.adjustment is None else self.adjustment.to_json(),
            "early_stop": None if self.early_stop is None else self.early_stop.to_json(),
        }


def evaluate_best_model(run: RunFolder, training: Training, reporter: Reporter) -> FinalEvaluation:
    """Calibrate the best model and evaluate it with the code of ``evaluate``.

    With a target prior on the run's model card, probabilities are adjusted to it. Its strength is
    chosen here if the config says so, after the temperature.
    """
    manifest = training.manifest
    bundle = load_model(run.best_checkpoint_path)
    calibration = adjustment = held_out_probabilities = None
    evaluations = {}
    for split in (Split.VAL, Split.TEST):
        samples = manifest.get_samples(split)
        if not samples:
            continue
        labels = manifest.encode_labels(samples)
        reporter.start(f"evaluating on {split.value}", len(samples))
        logits = _build_predictor(bundle, training).predict_logits(
            manifest.resolve_paths(samples), on_batch=reporter.advance
        )
        clean = find_rows_without_leaks(manifest, manifest.resolve_paths(samples))
        if split is Split.VAL:
            rows = clean or list(range(len(labels)))
            groups = group_samples([samples[row] for row in rows])
            held_out = HeldOutLogits(logits[rows, 0], torch.tensor(labels)[rows], groups)
            shift = _compute_prior_shift(labels, bundle)
            if training.config.calibration.enabled == "on":
                calibration = calibrate(
                    held_out.logits, held_out.target, shift=shift, groups=groups
                )
                bundle = _apply_temperature(bundle, calibration)
            if needs_strength(training):
                adjustment = choose_prior_adjustment(
                    run, training, bundle, held_out, label_shift=shift
                )
                bundle = apply_prior_adjustment(bundle, adjustment)
        predictor = _build_predictor(bundle, training)
        evaluations[split.value] = evaluate_logits(predictor, logits, labels)
        if split is Split.VAL:
            held_out_probabilities = predictor.compute_probabilities(logits)
        if clean is not None:
            evaluations[f"{split.value}{WITHOUT_LEAKS_SUFFIX}"] = evaluate_logits(
                predictor, logits[clean], [labels[row] for row in clean]
            )
        reporter.finish()
    if adjustment is not None:
        reporter.note(describe_prior_adjustment(adjustment))
    prior = prior_to_json(bundle.card, requested=None)
    return FinalEvaluation(
        evaluations, calibration, prior, adjustment, held_out=held_out_probabilities
    )


def write_bundle(run: RunFolder, evaluation: FinalEvaluation) -> None:
    """Write the bundle of the best model, with its evaluation on the model card.

    A fold of a cross-validation also keeps the probabilities of its validation images.

    Raises:
        StorageError: The disk is full or fails.
    """
    best = _apply_temperature(load_model(run.best_checkpoint_path), evaluation.calibration)
    best = apply_prior_adjustment(best, evaluation.adjustment)
    card = replace(best.card, facts={**best.card.facts, **evaluation.facts})
    if evaluation.held_out is not None and run.cross_validation_run is not run:
        save_held_out(run, evaluation.held_out)
    save_bundle(best.network, card, run.bundle_dir)


def save_held_out(run: RunFolder, probabilities: torch.Tensor) -> None:
    """Write the probabilities of the validation images, in manifest order, shape (N, K).

    Raises:
        StorageError: The disk is full or fails.
    """
    path = run.held_out_path
    with write_file_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, probabilities=probabilities.float().numpy())


def _compute_prior_shift(labels: Sequence[int], bundle: ModelBundle) -> torch.Tensor | None:
    """Return the logit adjustment to the class prior of validation images, shape (K,).

    Without it, a difference of the priors would be mistaken for over- or underconfidence. Each
    class counts one image more than it has (Laplace smoothing), so that one without images is rare
    and not impossible. None if the class counts agree with the model prior up to chance.
    """
    priors = bundle.card.priors
    if priors is None or min(priors.model) <= 0:
        return None
    counts = torch.bincount(torch.tensor(labels), minlength=len(priors.model))
    expected = torch.tensor(priors.model) * len(labels)
    # Pearson's chi-squared statistic, compared with its mean plus two standard deviations
    mean = len(counts) - 1
    if float(((counts - expected) ** 2 / expected).sum()) <= mean + 2 * (2 * mean) ** 0.5:
        return None
    return torch.tensor(compute_logit_shift(normalize_prior((counts + 1).tolist()), priors.model))


def _apply_temperature(bundle: ModelBundle, calibration: Calibration | None) -> ModelBundle:
    """Return the bundle with the temperature on its model card."""
    if calibration is None:
        return bundle
    return replace(bundle, card=replace(bundle.card, temperature=calibration.temperature))


def _build_predictor(bundle: ModelBundle, training: Training) -> Predictor:
    return Predictor(
        bundle,
        device=training.config.trainer.accelerator,
        batch_size=choose_eval_batch_size(training),
        num_workers=training.config.data.num_workers,
        options=training.config.data.read_options,
    )


def choose_eval_batch_size(training: Training) -> int:
    """Return the batch size of ``evaluate``, or a smaller one if training needed micro-batches."""
    if training.config.trainer.accumulate_grad_batches == 1:
        return _EVAL_BATCH_SIZE
    return min(_EVAL_BATCH_SIZE, get_micro_batch_size(training))
