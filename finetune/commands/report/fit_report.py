"""Report at the end of a run, which never makes a finished run fail."""

import math
import shlex
from typing import Any

from finetune.builders import Training
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.weights_origin import find_weights_origin
from finetune.commands.report.report import report
from finetune.commands.report.run_session import SessionRecorder
from finetune.config.schema import Config
from finetune.system.hardware import resolve_accelerator
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

MAX_PHOTO_SECONDS = 18.0
"""Time that the pictures of a page may take at the end of a run, so that it is done in 20 s."""

PHOTO_FRACTION = 0.09
"""Part of the time of a run that they may take, so that the page is done in a tenth of it."""


def describe_session(recorder: SessionRecorder, training: Training, *, num_processes: int) -> None:
    """Record what a run runs on, before it trains.

    Args:
        recorder: Record of this process.
        training: Objects of the run.
        num_processes: Number of processes that train together.
    """
    device = resolve_accelerator(training.config.trainer.accelerator)
    facts = _describe_training(training)
    recorder.describe(device=device, num_processes=num_processes, facts=facts)


def write_fit_report(
    run: RunFolder, config: Config, recorder: SessionRecorder, reporter: Reporter
) -> None:
    """Write the report of a finished run unless the config turns it off, or it is part of another.

    Args:
        run: Run folder with its bundle.
        config: Its config.
        recorder: Record of this process.
        reporter: Receiver of a warning if it fails: the model is complete.
    """
    recorder.save()
    if run.cross_validation_run is run:
        seconds = recorder.seconds
        recorder.begin("report")
        write_run_report(run, config, reporter, run_seconds=seconds)


def write_run_report(
    run: RunFolder, config: Config, reporter: Reporter, *, run_seconds: float = math.inf
) -> None:
    """Write the report of a run or a cross-validation unless the config turns it off.

    Args:
        run: Run folder.
        config: Its config.
        reporter: Receiver of the warning if it fails.
        run_seconds: Time that the run has taken; pictures take ``PHOTO_FRACTION`` of it, and no
            more than ``MAX_PHOTO_SECONDS``. Infinite for a cross-validation, whose page has
            thumbnails only.
    """
    if config.report.enabled == "off":
        return
    try:
        photo_seconds = min(MAX_PHOTO_SECONDS, PHOTO_FRACTION * run_seconds)
        report([run.path], photo_seconds=photo_seconds, reporter=reporter)
    except Exception as error:
        reporter.warn(
            f"The report was not written: {_describe(error)}. The model is complete; write the "
            f"report later: finetune report {shlex.quote(str(run.path))}"
        )


def write_partial_report(run: RunFolder, config: Config) -> bool:
    """Write the report of a run that has ended without a model; return whether it was written.

    It has no pictures of the network, and nothing is said of a failure: the run has an error of
    its own.
    """
    if config.report.enabled == "off":
        return False
    try:
        report([run.path], photo_seconds=0.0)
    except Exception:
        return False
    return True


def _describe(error: Exception) -> str:
    return (str(error).partition("\n")[0] or repr(error)).rstrip(".")


def _describe_training(training: Training) -> dict[str, Any]:
    """Return facts of a run that no other file of its folder has."""
    origin = find_weights_origin(ModelCard.from_json(training.module.card))
    parameters = training.network.module.parameters()
    return {
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "weights_license": origin.license,
        "loaded_fraction": training.network.report.loaded_fraction,
        "reasons": dict(training.reasons),
    }
