"""Facts of a trial that its run folder holds: score, epochs, and whether the probe was kept."""

import math
from typing import Any

from finetune.bundle.checkpoint_file import load_checkpoint_file
from finetune.bundle.model_card import read_card_json
from finetune.commands.measurement.interpolation import INTERPOLATION_KEY
from finetune.commands.stored_run import read_stored_config
from finetune.commands.tune.trials.trial_queue import ClaimedTrial
from finetune.config.resolved import ResolvedConfig
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import PROBE_KEY
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.types import Reporter


def read_score(run: RunFolder, monitor: str) -> float:
    """Return the metric of a finished run's model on its validation images.

    That is the score of the weights that were chosen between probe and last epoch, else that of the
    best epoch.
    """
    facts = read_card_json(run.bundle_dir)["facts"]
    chosen = facts.get(INTERPOLATION_KEY)
    if chosen is not None:
        position = chosen["fraction"]
        score = (
            chosen["best_epoch_score"] if position is None else chosen["scores"][f"{position:g}"]
        )
        return float(score)
    values = _read_column(run, f"val/{monitor}")
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    return min(finite) if monitor.endswith("loss") else max(finite)


def is_probe_kept(run: RunFolder) -> bool:
    """Return whether the model of a finished run is its linear probe, though it was fine-tuned.

    Then no trained weights were better on the validation images.
    """
    if ResolvedConfig.from_config(read_stored_config(run)).is_probe_only:
        return False
    return PROBE_KEY in load_checkpoint_file(run.best_checkpoint_path)


def collect_facts(claimed: ClaimedTrial, run: RunFolder) -> dict[str, Any]:
    """Return the time of a trial, over all of its attempts, and its epochs."""
    facts: dict[str, Any] = {"seconds": claimed.seconds}
    if run.config_path.is_file():
        facts["num_epochs"] = int(read_stored_config(run).trainer.epochs)
        epochs = _read_column(run, "epoch")
        facts["epochs"] = int(max(epochs)) if epochs else 0
    return facts


def _read_column(run: RunFolder, name: str) -> list[float]:
    rows = MetricsCsv(run.metrics_path, reporter=Reporter()).get_rows(after=-1, up_to=10**9)
    return [row[name] for row in rows if name in row]
