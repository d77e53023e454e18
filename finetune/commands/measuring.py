"""The end of a run: the best model measured as ``evaluate`` does it, and written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.build import Training, batch_in_memory
from finetune.bundle import ModelBundle, load_model, save_bundle
from finetune.calibration import Calibration, calibrate
from finetune.inference.evaluation import evaluate_logits
from finetune.inference.predictor import Predictor
from finetune.run_folder import RunFolder
from finetune.types import Evaluation, Reporter, Split

_MEASURED_BATCH = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """What the best model comes to.

    Attributes:
        evaluations: By split, with the temperature.
        calibration: Where the temperature comes from; None without one.
    """

    evaluations: Mapping[str, Evaluation]
    calibration: Calibration | None

    @property
    def facts(self) -> dict[str, Any]:
        """What the bundle says of it."""
        metrics = {split: dict(found.metrics) for split, found in self.evaluations.items()}
        calibration = None if self.calibration is None else self.calibration.as_json()
        return {"metrics": metrics, "calibration": calibration}


def measure_best(run: RunFolder, training: Training, reporter: Reporter) -> Measured:
    """Calibrate the best model and measure it through the very code that ``evaluate`` uses."""
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
        if split is Split.VAL and training.config.calibration.enabled == "on":
            calibration = calibrate(logits[:, 0], torch.tensor(labels))
            bundle = _calibrated(bundle, calibration)
        evaluations[split.value] = evaluate_logits(_predictor(bundle, training), logits, labels)
        reporter.finish()
    return Measured(evaluations, calibration)


def write_bundle(run: RunFolder, measured: Measured) -> None:
    """Write the best model and what was measured of it.

    Raises:
        StorageError: The disk is full or fails.
    """
    best = _calibrated(load_model(run.best), measured.calibration)
    card = replace(best.card, facts={**best.card.facts, **measured.facts})
    save_bundle(best.network, card, run.bundle)


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
