"""How a run goes on: what may differ from before, and its objects from its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    build_training,
    images_per_epoch,
    is_probe_only,
    last_parts,
)
from finetune.bundle.model_card import CARD_KEY, Card
from finetune.commands.prepare_data import absolute, data_path
from finetune.commands.stored_run import (
    require_files,
    stored_config,
    stored_manifest,
)
from finetune.config.load import build_config, changes, explicit_values, read_config_file
from finetune.config.schema import Config
from finetune.distributed.launch import outer_launch
from finetune.errors import ConfigError, RunFolderError
from finetune.system import run_folder
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.checkpoint import (
    read_checkpoint,
    require_undamaged,
    stored_position,
)

CHANGEABLE = (
    "trainer.epochs",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.early_stopping",
    "trainer.deterministic",
    "trainer.collective_timeout_seconds",
    "trainer.compile",
    "model.grad_checkpointing",
    "data.path",
    "data.cache",
    "cache.",
    "data.num_workers",
    "tracking.",
    "checkpoint.",
    "resume",
)
"""What may differ when a run goes on; anything else would make it another run."""


def asked_again(config: Config) -> RunFolder | None:
    """Return the run that the same command has started before, where it may go on.

    Raises:
        ConfigError: It cannot be found without a name.
    """
    if config.resume == "never":
        return None
    if config.output is None:
        raise ConfigError(
            "resume=auto looks for the run in the folder of --output, which is missing: add "
            "--output runs/NAME."
        )
    path = Path(config.output).expanduser()
    return run_folder.existing(path) if run_folder.is_run(path) else None


def asked_for(run: RunFolder, config: Config) -> dict[str, Any]:
    """Return what a command says again of a run, key by key, as the run's own config has it."""
    values = {key: value for key, value in explicit_values(config).items() if value != "auto"}
    for key in ("output", "resume"):
        values.pop(key, None)
    if config.unfreeze.name == "auto" and not config.unfreeze.params:
        values.pop("unfreeze.params", None)
    values["data.path"] = str(data_path(config).resolve())
    for key in ("model.weights", "augment.name"):
        if key in values:
            values[key] = absolute(values[key])
    stored = stored_config(run)
    num_images = images_per_epoch(stored, stored_manifest(run, stored))
    if int(stored.trainer.batch_size) <= num_images < values.get("trainer.batch_size", 0):
        del values["trainer.batch_size"]  # it shrank to the images of an epoch
    return values


def with_changes(
    run: RunFolder,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Config:
    """Return the config with which a run goes on.

    Raises:
        ConfigError: It would be another run, or one with fewer epochs than are done.
    """
    stored = stored_config(run)
    tree = read_config_file(run.config)
    # what "auto" came to stays so
    assignments = {key: value for key, value in (assignments or {}).items() if value != "auto"}
    flags = {key: given for key, given in (flags or {}).items() if given[1] != "auto"}
    # the machines of today, which are those of the launcher, if there is one
    tree["trainer"]["num_nodes"] = "auto"
    if outer_launch() is not None:
        tree["trainer"]["devices"] = "auto"
    config = build_config(tree, assignments=assignments, flags=flags, file=str(run.config))
    _check_changes(stored, config)
    _check_epochs(run, config)
    return config


def rebuilt(run: RunFolder, config: Config) -> Training:
    """Return the training of a run from its folder: the same split, the same network."""
    resumed = None
    if run.last.is_file():
        require_undamaged(run.last)
        card = read_checkpoint(run.last)[CARD_KEY]
        try:
            resumed = Card.from_json(card)
        except RunFolderError as error:
            raise RunFolderError(f"{run.last}: {error}") from error
    manifest = stored_manifest(run, config)
    require_files(manifest, manifest.samples)
    return build_training(config, manifest, resumed=resumed, going_on=True)


def moved_parts(run: RunFolder, training: Training) -> list[str]:
    """Say what about unequal classes comes earlier or later than the run's first epochs assumed.

    Args:
        run: The run, with the config of before.
        training: Of now.
    """
    position, stored = stored_position(run), stored_config(run)
    before, now = stored.trainer.epochs, training.config.trainer.epochs
    if position is None or before == now or training.is_probe_only:
        return []
    old, new = (last_parts(one, training.manifest) for one in (stored, training.config))
    found = []
    for part, (setting, start) in new.items():
        was, done = old[part][1], position.epochs
        if start == was:
            continue
        back = ", and until then training goes back to what came before it" * (was < done < start)
        found.append(
            f"{setting}: its last part begins in epoch {start + 1} of {now}; before, in epoch "
            f"{was + 1} of {before}. What is trained stays as it is{back}. If all of it is to "
            f"follow {now} epochs, start a new run."
        )
    return found


def goes_on_from(run: RunFolder, config: Config) -> str:
    """Say where a run goes on.

    Args:
        run: The run.
        config: Resolved, with which it goes on.
    """
    position = stored_position(run)
    if position is None:
        return _begins_again(run, config)
    if position.steps:
        return f"Goes on in epoch {position.epochs + 1}, after {position.steps} of its steps."
    return f"Goes on after epoch {position.epochs}."


def _begins_again(run: RunFolder, config: Config) -> str:
    """Say where a run without a saved epoch goes on."""
    if config.probe.enabled != "on":
        return "No checkpoint was saved before; the run starts with its first epoch."
    if is_probe_only(config) and run.best.is_file():
        return "The probe is saved; its model remains to be measured and written."
    return (
        "No checkpoint was saved before; the run starts with its probe and computes only the "
        "features that were not kept."
    )


def _check_changes(stored: Config, config: Config) -> None:
    for key, (before, after) in changes(stored, config).items():
        sections = tuple(name for name in CHANGEABLE if name.endswith("."))
        if key not in CHANGEABLE and not key.startswith(sections):
            raise ConfigError(
                f"{key} is {before!r} in the run and cannot become {after!r}: it would be another "
                f"run. Leave it out, or start a new run without --resume."
            )


def _check_epochs(run: RunFolder, config: Config) -> None:
    position = stored_position(run)
    done = 0 if position is None else position.epochs
    if int(config.trainer.epochs) < done:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs}: the run has {done} epochs behind it already. "
            f"Give more than that, or leave it out."
        )
