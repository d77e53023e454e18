"""The end of a run: the best model measured as ``evaluate`` does it, and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.audit.leakage import rows_without_leaks
from finetune.builders import Training, batch_in_memory
from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.commands.target_prior import prior_as_json
from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.priors import logit_shift, shares_of
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import details_as_json, evaluate_logits, metrics_as_json
from finetune.system.run_folder import RunFolder
from finetune.types import Evaluation, Reporter, Split

_MEASURED_BATCH = 32

WITHOUT_LEAKS = "_without_leaks"
"""Follows the name of a split where images whose copies are seen before are left out."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the best model comes to.

    Attributes:
        evaluations: By split, and where some of it is seen before also ``WITHOUT_LEAKS``; with the
            temperature and for the target prior of the run's card.
        calibration: Where the temperature comes from; None without one.
        prior: Which shares of the classes the answers were for, as plain values.
    """

    evaluations: Mapping[str, Evaluation]
    calibration: Calibration | None
    prior: Mapping[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the bundle says of it."""
        found = self.evaluations.items()
        return {
            "metrics": {split: metrics_as_json(evaluation) for split, evaluation in found},
            "evaluations": {
                split: {"prior": dict(self.prior), **details_as_json(evaluation)}
                for split, evaluation in found
            },
            "calibration": None if self.calibration is None else self.calibration.as_json(),
        }


def measure_best(run: RunFolder, training: Training, reporter: Reporter) -> Measured:
    """Calibrate the best model and measure it through the very code that ``evaluate`` uses.

    Where the run's card names a target prior, the numbers are those of answers adjusted to it.
    """
    manifest = training.manifest
    bundle = load_model(run.best)
    calibration = None
    evaluations = {}
    for split in (Split.VAL, Split.TEST):
        samples = manifest.of(split)
        if not samples:
            continue
        labels = manifest.labels(samples)
        reporter.start(f"measuring on {split.value}", len(samples))
        logits = _predictor(bundle, training).logits(
            manifest.paths(samples), on_batch=reporter.advance
        )
        clean = rows_without_leaks(manifest, manifest.paths(samples))
        if split is Split.VAL and training.config.calibration.enabled == "on":
            calibration = calibrate(
                logits[clean or slice(None), 0],
                torch.tensor(labels)[clean or slice(None)],
                shift=_to_the_shares_of(labels, bundle),
            )
            bundle = _calibrated(bundle, calibration)
        predictor = _predictor(bundle, training)
        evaluations[split.value] = evaluate_logits(predictor, logits, labels)
        if clean is not None:
            evaluations[f"{split.value}{WITHOUT_LEAKS}"] = evaluate_logits(
                predictor, logits[clean], [labels[row] for row in clean]
            )
        reporter.finish()
    return Measured(evaluations, calibration, prior_as_json(bundle.card, asked=None))


def write_bundle(run: RunFolder, measured: Measured) -> None:
    """Write the best model and what was measured of it.

    Raises:
        StorageError: The disk is full or fails.
    """
    best = _calibrated(load_model(run.best), measured.calibration)
    card = replace(best.card, facts={**best.card.facts, **measured.facts})
    save_bundle(best.network, card, run.bundle)


def _to_the_shares_of(labels: Sequence[int], bundle: ModelBundle) -> torch.Tensor | None:
    """Return what moves logits to the shares of the classes among some images, shape (K,).

    Logits for other shares are else taken for being too sure, or not sure enough. Each class counts
    one image more than there are, so that one without images is rare and not impossible. None moves
    nothing, where the images have the shares that the logits are for, but for chance.
    """
    priors = bundle.card.priors
    if priors is None or min(priors.model) <= 0:
        return None
    counts = torch.bincount(torch.tensor(labels), minlength=len(priors.model))
    expected = torch.tensor(priors.model) * len(labels)
    # Pearson's statistic, held against its mean and two standard deviations
    chance = len(counts) - 1
    if float(((counts - expected) ** 2 / expected).sum()) <= chance + 2 * (2 * chance) ** 0.5:
        return None
    return torch.tensor(logit_shift(shares_of((counts + 1).tolist()), priors.model))


def _calibrated(bundle: ModelBundle, calibration: Calibration | None) -> ModelBundle:
    """Return the same network with the temperature in its card."""
    if calibration is None:
        return bundle
    return replace(bundle, card=replace(bundle.card, temperature=calibration.temperature))


def _predictor(bundle: ModelBundle, training: Training) -> Predictor:
    return Predictor(
        bundle,
        device=training.config.trainer.accelerator,
        batch_size=_batch(training),
        num_workers=int(training.config.data.num_workers),
        max_pixels=int(training.config.data.max_megapixels * 1e6),
    )


def _batch(training: Training) -> int:
    """Return as many images as ``evaluate`` takes, or fewer where a batch did not fit."""
    whole = int(training.config.trainer.accumulate) == 1
    return _MEASURED_BATCH if whole else min(_MEASURED_BATCH, batch_in_memory(training))
