"""The end of a run: the best model measured as ``evaluate`` does it, and written."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.build import Training, batch_in_memory
from finetune.bundle import load_model, save_bundle
from finetune.inference.evaluation import evaluate_files
from finetune.inference.predictor import Predictor
from finetune.run_folder import RunFolder
from finetune.types import Evaluation, Reporter, Split

_MEASURED_BATCH = 32


def measure_best(run: RunFolder, training: Training, reporter: Reporter) -> dict[str, Evaluation]:
    """Return the best model's evaluations through the very code that ``evaluate`` uses."""
    manifest = training.manifest
    predictor = Predictor(
        load_model(run.best),
        device=training.config.trainer.accelerator,
        batch_size=_batch(training),
        num_workers=int(training.config.data.num_workers),
        max_pixels=int(training.config.data.max_megapixels * 1e6),
    )
    results = {}
    for split in (Split.VAL, Split.TEST):
        samples = manifest.of(split)
        if samples:
            reporter.start(f"measuring on {split.value}", len(samples))
            results[split.value] = evaluate_files(
                predictor,
                manifest.paths(samples),
                manifest.labels(samples),
                on_batch=reporter.advance,
            )
            reporter.finish()
    return results


def write_bundle(run: RunFolder, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Write the best model and what was measured of it, by split.

    Raises:
        StorageError: The disk is full or fails.
    """
    best = load_model(run.best)
    card = replace(best.card, facts={**best.card.facts, "metrics": metrics})
    save_bundle(best.network, card, run.bundle)


def _batch(training: Training) -> int:
    """Return as many images as ``evaluate`` takes, or fewer where a batch did not fit."""
    whole = int(training.config.trainer.accumulate) == 1
    return _MEASURED_BATCH if whole else min(_MEASURED_BATCH, batch_in_memory(training))
