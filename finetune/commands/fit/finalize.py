"""Calibration and evaluation of the best model of a run, and its bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from finetune.audit.leakage import find_rows_without_leaks
from finetune.builders import Training, get_micro_batch_size
from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.bundle.checkpoint_file import load_checkpoint_file
from finetune.bundle.validation_choices import TRAINING_CHOICES_KEY
from finetune.commands.evaluation.label_shift import compute_label_shift
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
from finetune.evaluation.multi_label.label_calibration import calibrate_labels
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import (
    AnyEvaluation,
    details_to_json,
    evaluate_targets,
    metrics_to_json,
)
from finetune.probe.head_rebalancing import REBALANCED_KEY, is_rebalanced, rebalance
from finetune.system.files import write_file_atomically
from finetune.system.hardware import get_process_device
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.early_stopping import EarlyStop
from finetune.types import Reporter, Split
from finetune.units import format_percent, format_scientific

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
        probabilities: Probabilities of the images of each split, in manifest order, shape (N, K).
        thresholds: Probability from which each label of a multi-label model is predicted; None for
            other models.
        rebalancing: Method and result of the rebalancing of the classifier; None without one.
        training_choices: Keys of what validation images chose in training.
    """

    evaluations: Mapping[str, AnyEvaluation]
    calibration: Calibration | None
    prior: Mapping[str, Any]
    adjustment: PriorAdjustment | None = None
    early_stop: EarlyStop | None = None
    probabilities: Mapping[Split, torch.Tensor] = field(default_factory=dict)
    thresholds: tuple[float, ...] | None = None
    rebalancing: Mapping[str, Any] | None = None
    training_choices: Sequence[str] = ()

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
            "rebalancing": None if self.rebalancing is None else dict(self.rebalancing),
            TRAINING_CHOICES_KEY: list(self.training_choices),
        }


def rebalance_head(run: RunFolder, training: Training, reporter: Reporter) -> None:
    """Rebalance the classifier of the best model, once, if the config requests it."""
    method = training.config.imbalance.head_rebalancing
    if method not in ("crt", "tau_norm") or is_rebalanced(run.best_checkpoint_path):
        return
    assert training.probe is not None, "checked in builders/constraints"
    device = get_process_device(training.config.trainer.accelerator, 0)
    groups = group_samples(training.manifest.get_samples(Split.TRAIN))
    plan = replace(training.probe, train=replace(training.probe.train, groups=groups))
    result = rebalance(run.best_checkpoint_path, method, plan, device=device, reporter=reporter)
    before = format_percent(result.balanced_accuracy_before, decimals=2)
    after = format_percent(result.balanced_accuracy_after, decimals=2)
    if result.tau == 0:
        effect = f"no tau improves its {before}, so the classifier is unchanged"
    else:
        effect = f"{before} -> {after}"
    setting = (
        f"tau {result.tau:g}"
        if result.penalty is None
        else f"L2 {format_scientific(result.penalty, digits=1)}"
    )
    reporter.note(
        f"Classifier rebalanced by {method} ({setting}). Balanced accuracy on val: {effect}."
    )


def evaluate_best_model(run: RunFolder, training: Training, reporter: Reporter) -> FinalEvaluation:
    """Calibrate the best model and evaluate it with the code of ``evaluate``.

    With a target prior on the run's model card, probabilities are adjusted to it. Its strength is
    chosen here if the config says so, after the temperature.
    """
    manifest = training.manifest
    bundle = load_model(run.best_checkpoint_path)
    calibration = adjustment = thresholds = None
    evaluations, probabilities = {}, {}
    for split in (Split.VAL, Split.TEST):
        samples = manifest.get_samples(split)
        if not samples:
            continue
        targets = manifest.encode_targets(samples)
        reporter.start(f"evaluating on {split.value}", len(samples))
        logits = _build_predictor(bundle, training).predict_logits(
            manifest.resolve_paths(samples), on_batch=reporter.advance
        )
        clean = find_rows_without_leaks(manifest, manifest.resolve_paths(samples))
        if split is Split.VAL:
            rows = clean or list(range(len(targets)))
            groups = group_samples([samples[row] for row in rows])
            held_out = HeldOutLogits(logits[rows, 0], torch.from_numpy(targets)[rows], groups)
            shift = compute_label_shift(torch.from_numpy(targets), bundle.card)
            if training.config.calibration.enabled == "on":
                calibration = (
                    calibrate_labels(held_out.logits, held_out.target, groups=groups)
                    if bundle.card.is_multi_label
                    else calibrate(held_out.logits, held_out.target, shift=shift, groups=groups)
                )
            thresholds = _choose_thresholds(bundle, held_out, calibration)
            bundle = _calibrate(bundle, calibration, thresholds)
            if needs_strength(training):
                adjustment = choose_prior_adjustment(
                    run, training, bundle, held_out, label_shift=shift
                )
                bundle = apply_prior_adjustment(bundle, adjustment)
        predictor = _build_predictor(bundle, training)
        evaluations[split.value] = evaluate_targets(predictor, logits, targets)
        probabilities[split] = predictor.compute_probabilities(logits)
        if clean is not None:
            evaluations[f"{split.value}{WITHOUT_LEAKS_SUFFIX}"] = evaluate_targets(
                predictor, logits[clean], targets[clean]
            )
        reporter.finish()
    if adjustment is not None:
        reporter.note(describe_prior_adjustment(adjustment))
    prior = prior_to_json(bundle.card, requested=None)
    return FinalEvaluation(
        evaluations,
        calibration,
        prior,
        adjustment,
        probabilities=probabilities,
        thresholds=thresholds,
        rebalancing=load_checkpoint_file(run.best_checkpoint_path).get(REBALANCED_KEY),
        training_choices=_list_training_choices(bundle, training),
    )


def _list_training_choices(bundle: ModelBundle, training: Training) -> list[str]:
    """Return the keys of what validation images chose before the end of training."""
    config = training.config
    has_probe = config.probe.enabled == "on"
    if not training.data.val:
        return []
    choices = ["last_stage_epochs"] if has_probe and config.probe.depth > 1 else []
    if training.is_probe_only:
        return choices
    if config.lr_schedule.name == "plateau":
        choices.append("learning_rate_falls")
    position = (bundle.card.facts.get("interpolation") or {}).get("fraction")
    if position is None and config.trainer.epochs + has_probe > 1:
        choices.append("epoch")
    return choices


def write_bundle(run: RunFolder, evaluation: FinalEvaluation) -> None:
    """Write the bundle of the best model, with its evaluation on the model card.

    Before it, the probabilities of its validation and test images, from which the report and a
    cross-validation are made.

    Raises:
        StorageError: The disk is full or fails.
    """
    best = load_model(run.best_checkpoint_path)
    best = _calibrate(best, evaluation.calibration, evaluation.thresholds)
    best = apply_prior_adjustment(best, evaluation.adjustment)
    card = replace(best.card, facts={**best.card.facts, **evaluation.facts})
    for split, probabilities in evaluation.probabilities.items():
        save_predictions(run, split, probabilities)
    save_bundle(best.network, card, run.bundle_dir)


def save_predictions(run: RunFolder, split: Split, probabilities: torch.Tensor) -> None:
    """Write the probabilities of the images of a split, in manifest order, shape (N, K).

    They are float32, or float64 if they are given so: those of several labels may be too close to 1
    for float32.

    Raises:
        StorageError: The disk is full or fails.
    """
    path = run.get_predictions_path(split)
    with write_file_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, probabilities=probabilities.numpy())


def _choose_thresholds(
    bundle: ModelBundle, held_out: HeldOutLogits, calibration: Calibration | None
) -> tuple[float, ...] | None:
    """Return the thresholds of the best F1 on validation images; None for one class per image."""
    if not bundle.card.is_multi_label:
        return None
    temperature = 1.0 if calibration is None else calibration.temperature
    return choose_thresholds((held_out.logits.double() / temperature).sigmoid(), held_out.target)


def _calibrate(
    bundle: ModelBundle, calibration: Calibration | None, thresholds: tuple[float, ...] | None
) -> ModelBundle:
    """Return the bundle with the temperature and the thresholds, if any, on its model card."""
    card = bundle.card
    if thresholds is not None:
        card = replace(card, thresholds=thresholds)
    if calibration is not None:
        card = replace(card, temperature=calibration.temperature)
    return replace(bundle, card=card)


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
