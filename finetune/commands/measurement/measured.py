"""Settings that a run measures after its plan, such as those that depend on cached features.

Until then the config has "auto" for them. Rank 0 measures, all ranks take its values, and the
run's ``config.yaml`` keeps them, so that a resumed run has nothing left to measure.
``measured.json`` has their reasons.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from finetune.builders import Training, update_training
from finetune.config.auto import get_config_value
from finetune.config.facts import Choice
from finetune.config.load import dump_config
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import RunFolderError
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder

_VERSION = 1


def apply_measured(
    run: RunFolder,
    training: Training,
    choices: Mapping[str, Choice] | None,
    *,
    stage: str,
    rendezvous: Rendezvous | None,
) -> Training:
    """Return the training with settings that rank 0 has measured; all ranks call it.

    Args:
        run: Run folder; rank 0 writes ``measured.json`` and then ``config.yaml``.
        training: Objects of the run, with or without its cache enabled.
        choices: Values with reasons by dotted key, on rank 0; not used on the others.
        stage: Name of the measurement, unique in a run.
        rendezvous: Rendezvous of the ranks; None for a single process.

    Raises:
        ConfigError: A setting cannot apply or contradicts another.
        StorageError: The disk is full or fails.
    """
    key = f"measured/{stage}"
    if rendezvous is not None and rendezvous.launch.rank > 0:
        received = rendezvous.receive(key)  # waits for as long as the measurement takes
        return update_training(training, {name: Choice(*pair) for name, pair in received.items()})
    assert choices is not None, "rank 0 has measured"
    updated = update_training(training, choices)
    _record(run, updated, choices)
    if rendezvous is not None:
        rendezvous.broadcast(key, {name: [c.value, c.reason] for name, c in choices.items()})
    return updated


def read_measured(run: RunFolder) -> dict[str, Any]:
    """Return the measured settings of a run: value and reason by dotted key; empty without any.

    Raises:
        RunFolderError: ``measured.json`` is damaged.
    """
    path = run.measured_path
    if not path.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged: {error}. Remove it; the values are in {run.config_path}."
        ) from error
    return settings


def discard_measured(run: RunFolder, keys: Iterable[str]) -> None:
    """Remove the reasons of measured settings that now have other values.

    Raises:
        RunFolderError: ``measured.json`` is damaged.
        StorageError: The disk is full or fails.
    """
    settings = read_measured(run)
    kept = {key: setting for key, setting in settings.items() if key not in set(keys)}
    if kept != settings:
        _write(run, kept)


def _record(run: RunFolder, training: Training, choices: Mapping[str, Choice]) -> None:
    """Write the settings with their reasons, and the config of the run."""
    settings = read_measured(run) | {
        key: {"value": get_config_value(training.config, key), "reason": choice.reason}
        for key, choice in choices.items()
    }
    _write(run, settings)
    write_text(run.config_path, dump_config(training.config))


def _write(run: RunFolder, settings: Mapping[str, Any]) -> None:
    content = {"version": _VERSION, "settings": settings}
    write_text(run.measured_path, json.dumps(content, indent=2) + "\n")
