"""How a run goes on: what may differ from before, and its objects from its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    build_training,
    compute_images_per_epoch,
    find_final_imbalance_phases,
    is_probe_only,
)
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.commands.prepare_data import resolve_data_path, resolve_if_path
from finetune.commands.stored_run import (
    check_files_exist,
    read_stored_config,
    read_stored_manifest,
)
from finetune.config.load import build_config, diff_configs, get_explicit_values, read_config_file
from finetune.config.schema import Config
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError, RunFolderError
from finetune.system import run_folder
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.checkpoint import (
    read_checkpoint,
    read_resume_state,
    verify_checkpoint,
)

OVERRIDABLE_KEYS = (
    "trainer.epochs",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate_grad_batches",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.early_stopping_patience",
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


def find_existing_run(config: Config) -> RunFolder | None:
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
    return run_folder.open_existing(path) if run_folder.is_run(path) else None


def collect_overrides(run: RunFolder, config: Config) -> dict[str, Any]:
    """Return what a command says again of a run, key by key, as the run's own config has it."""
    values = {key: value for key, value in get_explicit_values(config).items() if value != "auto"}
    for key in ("output", "resume"):
        values.pop(key, None)
    if config.unfreeze.name == "auto" and not config.unfreeze.params:
        values.pop("unfreeze.params", None)
    values["data.path"] = str(resolve_data_path(config).resolve())
    for key in ("model.weights", "augment.name"):
        if key in values:
            values[key] = resolve_if_path(values[key])
    stored = read_stored_config(run)
    num_images = compute_images_per_epoch(stored, read_stored_manifest(run, stored))
    if int(stored.trainer.batch_size) <= num_images < values.get("trainer.batch_size", 0):
        del values["trainer.batch_size"]  # it shrank to the images of an epoch
    return values


def build_resume_config(
    run: RunFolder,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Config:
    """Return the config with which a run goes on.

    Raises:
        ConfigError: It would be another run, or one with fewer epochs than are done.
    """
    stored = read_stored_config(run)
    tree = read_config_file(run.config_path)
    # what "auto" came to stays so
    assignments = {key: value for key, value in (assignments or {}).items() if value != "auto"}
    flags = {key: given for key, given in (flags or {}).items() if given[1] != "auto"}
    # the machines of today, which are those of the launcher, if there is one
    tree["trainer"]["num_nodes"] = "auto"
    if detect_launch() is not None:
        tree["trainer"]["devices"] = "auto"
    config = build_config(
        tree, assignments=assignments, flags=flags, source_name=str(run.config_path)
    )
    _check_changes(stored, config)
    _check_epochs(run, config)
    return config


def rebuild_training(run: RunFolder, config: Config) -> Training:
    """Return the training of a run from its folder: the same split, the same network."""
    resumed = None
    if run.last_checkpoint_path.is_file():
        verify_checkpoint(run.last_checkpoint_path)
        card = read_checkpoint(run.last_checkpoint_path)[CARD_KEY]
        try:
            resumed = ModelCard.from_json(card)
        except RunFolderError as error:
            raise RunFolderError(f"{run.last_checkpoint_path}: {error}") from error
    manifest = read_stored_manifest(run, config)
    check_files_exist(manifest, manifest.samples)
    return build_training(config, manifest, checkpoint_card=resumed, is_resumed=True)


def describe_phase_shifts(run: RunFolder, training: Training) -> list[str]:
    """Say what about unequal classes comes earlier or later than the run's first epochs assumed.

    Args:
        run: The run, with the config of before.
        training: Of now.
    """
    position, stored = read_resume_state(run), read_stored_config(run)
    before, now = stored.trainer.epochs, training.config.trainer.epochs
    if position is None or before == now or training.is_probe_only:
        return []
    old, new = (
        find_final_imbalance_phases(one, training.manifest) for one in (stored, training.config)
    )
    found = []
    for part, (setting, start) in new.items():
        was, done = old[part][1], position.completed_epochs
        if start == was:
            continue
        back = ", and until then training goes back to what came before it" * (was < done < start)
        found.append(
            f"{setting}: its last part begins in epoch {start + 1} of {now}; before, in epoch "
            f"{was + 1} of {before}. What is trained stays as it is{back}. If all of it is to "
            f"follow {now} epochs, start a new run."
        )
    return found


def describe_resume_point(run: RunFolder, config: Config) -> str:
    """Say where a run goes on.

    Args:
        run: The run.
        config: Resolved, with which it goes on.
    """
    position = read_resume_state(run)
    if position is None:
        return _describe_restart(run, config)
    if position.steps_in_epoch:
        return f"Goes on in epoch {position.completed_epochs + 1}, after {position.steps_in_epoch} of its steps."
    return f"Goes on after epoch {position.completed_epochs}."


def _describe_restart(run: RunFolder, config: Config) -> str:
    """Say where a run without a saved epoch goes on."""
    if config.probe.enabled != "on":
        return "No checkpoint was saved before; the run starts with its first epoch."
    if is_probe_only(config) and run.best_checkpoint_path.is_file():
        return "The probe is saved; its model remains to be measured and written."
    return (
        "No checkpoint was saved before; the run starts with its probe and computes only the "
        "features that were not kept."
    )


def _check_changes(stored: Config, config: Config) -> None:
    for key, (before, after) in diff_configs(stored, config).items():
        sections = tuple(name for name in OVERRIDABLE_KEYS if name.endswith("."))
        if key not in OVERRIDABLE_KEYS and not key.startswith(sections):
            raise ConfigError(
                f"{key} is {before!r} in the run and cannot become {after!r}: it would be another "
                f"run. Leave it out, or start a new run without --resume."
            )


def _check_epochs(run: RunFolder, config: Config) -> None:
    position = read_resume_state(run)
    done = 0 if position is None else position.completed_epochs
    if int(config.trainer.epochs) < done:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs}: the run has {done} epochs behind it already. "
            f"Give more than that, or leave it out."
        )
