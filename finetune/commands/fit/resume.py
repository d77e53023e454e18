"""Resumption of a run: which settings may change, and objects from its folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    build_training,
    compute_images_per_epoch,
)
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.commands.prepare_data import resolve_data_path, resolve_if_path
from finetune.commands.stored_run import (
    check_files_exist,
    check_stored_code,
    read_stored_config,
    read_stored_manifest,
    read_stored_tree,
)
from finetune.config.auto import get_config_value
from finetune.config.load import build_config, diff_configs, get_explicit_values
from finetune.config.renamed_keys import rename_key
from finetune.config.schema import Config
from finetune.data.training_data import TrainingData
from finetune.distributed.launch import detect_launch
from finetune.distributed.peer_errors import PeerLostError
from finetune.errors import ConfigError, RunFolderError
from finetune.system import run_folder
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import read_checkpoint, read_resume_state, verify_checkpoint
from finetune.types import Reporter
from finetune.units import format_count, format_yaml_value

OVERRIDABLE_KEYS = (
    "trainer.epochs",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate_grad_batches",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.early_stopping_patience",
    "trainer.train_eval",
    "trainer.deterministic",
    "trainer.collective_timeout_seconds",
    "trainer.compile",
    "model.grad_checkpointing",
    "data.path",
    "data.cache",
    "cache.",
    "data.num_workers",
    "tracking.",
    "report.",
    "checkpoint.every_minutes",
    "cross_validation.final",
    "cross_validation.fold",
    "resume",
)
"""Keys, and sections ending in a dot, that may change in a resumed run; others define the run."""

START_KEYS = {"optim.lr": "", "checkpoint.monitor": ", by which its best model was chosen,"}
"""Keys that may also change before the first checkpoint of an epoch, and a clause on why not later.

In a cross-validation, before the first fold has begun. A checkpoint has the score of the best model
so far, which says nothing about another metric.
"""


def find_existing_run(config: Config) -> RunFolder | None:
    """Return the run in ``output`` that ``resume: auto`` resumes; None for a new run.

    Raises:
        ConfigError: ``resume`` is "auto" without ``output``.
    """
    if config.resume == "never":
        return None
    if config.output is None:
        raise ConfigError("resume=auto needs the folder of the run. Add --output runs/NAME.")
    path = Path(config.output).expanduser()
    return run_folder.open_existing(path) if run_folder.is_run(path) else None


@contextmanager
def suggest_resume(
    run: RunFolder, reporter: Reporter, *, fold: int | None = None
) -> Iterator[None]:
    """Show the command that resumes a run if the block is interrupted.

    Args:
        run: Run folder; a part of a cross-validation is resumed with the others.
        reporter: Receiver of the command.
        fold: The one fold that the process trains, as one of several jobs; None for all.
    """
    command = run.resume_command if fold is None else f"{run.resume_command} --fold {fold}"
    try:
        yield
    except KeyboardInterrupt:
        reporter.finish()
        reporter.note(f"Stopped. Resume with: {command}")
        raise
    except PeerLostError:
        reporter.note(f"Resume with: {command}")
        raise


def collect_overrides(run: RunFolder, config: Config) -> dict[str, Any]:
    """Return the explicit settings of a repeated command, in the form that the run stores them."""
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
    num_images = compute_images_per_epoch(
        stored.imbalance,
        TrainingData.from_manifest(read_stored_manifest(run, stored)),
        num_epochs=int(stored.trainer.epochs),
    )
    if int(stored.trainer.batch_size) <= num_images < values.get("trainer.batch_size", 0):
        del values["trainer.batch_size"]  # the run reduced it to the images of an epoch
    return values


def build_resume_config(
    run: RunFolder,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Config:
    """Return the config of a resumed run.

    Args:
        run: Run folder.
        assignments: Dotted keys to new values.
        flags: Dotted keys to option names and new values.

    Raises:
        ConfigError: A key may not change, or there are fewer epochs than completed ones.
        RunFolderError: The config names code that lies in the run folder.
    """
    stored, tree = read_stored_config(run), read_stored_tree(run)
    check_stored_code(run.path, tree)
    # values that were resolved from "auto" stay the same; "auto" for an unknown key is an error
    build_config({}, assignments=dict.fromkeys(_list_auto_keys(assignments, flags), "auto"))
    assignments = {key: value for key, value in (assignments or {}).items() if value != "auto"}
    flags = {key: flag for key, flag in (flags or {}).items() if flag[1] != "auto"}
    # nodes and processes follow the present launcher, if there is one
    tree["trainer"]["num_nodes"] = "auto"
    if detect_launch() is not None:
        tree["trainer"]["devices"] = "auto"
    config = build_config(
        tree, assignments=assignments, flags=flags, source_name=str(run.config_path)
    )
    _check_changes(stored, config, has_started=_has_started(run, stored))
    _check_epochs(run, config)
    return config


def describe_kept_values(
    config: Config,
    assignments: Mapping[str, Any] | None,
    flags: Mapping[str, tuple[str, Any]] | None,
) -> str | None:
    """Return what a resumed run makes of "auto" as value: it keeps its own; None without any.

    Args:
        config: Config of the resumed run.
        assignments: Dotted keys to new values.
        flags: Dotted keys to option names and new values.
    """
    keys = [key for key in _list_auto_keys(assignments, flags) if key.count(".") == 1]
    kept = {key: get_config_value(config, key) for key in keys}
    shown = [f"{key}={format_yaml_value(v)}" for key, v in kept.items() if v not in ("auto", None)]
    if not shown:
        return None
    return (
        f"The run keeps {', '.join(shown)}: auto chooses a value for new runs only, and a resumed "
        f"one continues with what it began with."
    )


def _list_auto_keys(
    assignments: Mapping[str, Any] | None, flags: Mapping[str, tuple[str, Any]] | None
) -> list[str]:
    """Return the keys with "auto" as value by their present names, each once."""
    values = {key: value for key, (_, value) in (flags or {}).items()} | dict(assignments or {})
    return list(dict.fromkeys(rename_key(key) for key, value in values.items() if value == "auto"))


def rebuild_training(run: RunFolder, config: Config) -> Training:
    """Return the training of a run from its folder, with the same split and the same network.

    Raises:
        RunFolderError: The checkpoint is damaged.
        DataError: Images of the run are missing.
    """
    checkpoint_card = None
    if run.last_checkpoint_path.is_file():
        verify_checkpoint(run.last_checkpoint_path)
        card = read_checkpoint(run.last_checkpoint_path)[CARD_KEY]
        try:
            checkpoint_card = ModelCard.from_json(card)
        except RunFolderError as error:
            raise RunFolderError(f"{run.last_checkpoint_path}: {error}") from error
    manifest = read_stored_manifest(run, config)
    check_files_exist(manifest, manifest.samples)
    return build_training(config, manifest, checkpoint_card=checkpoint_card, is_resumed=True)


def _has_started(run: RunFolder, stored: Config) -> bool:
    """Return whether a run has a checkpoint, or a cross-validation a fold that has begun.

    What one fold of several would start with differs from the others.
    """
    is_fold = stored.cross_validation.fold is not None
    return is_fold or read_resume_state(run) is not None or any(run.path.glob("folds/*"))


def _check_changes(stored: Config, config: Config, *, has_started: bool) -> None:
    """Check that only overridable keys differ."""
    sections = tuple(key for key in OVERRIDABLE_KEYS if key.endswith("."))
    keys = OVERRIDABLE_KEYS if has_started else (*OVERRIDABLE_KEYS, *START_KEYS)
    for key, (before, after) in diff_configs(stored, config).items():
        is_part = key == "cross_validation.fold" and before is not None
        if is_part or (key not in keys and not key.startswith(sections)):
            raise ConfigError(
                f"{key} is {format_yaml_value(before)} in the run{START_KEYS.get(key, '')} and "
                f"cannot become {format_yaml_value(after)} in a resumed run. "
                f"Leave it out, or start a new run without --resume."
            )


def _check_epochs(run: RunFolder, config: Config) -> None:
    """Check that a run has not completed more epochs than requested."""
    state = read_resume_state(run)
    completed = 0 if state is None else state.completed_epochs
    if int(config.trainer.epochs) < completed:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs}: the run has completed "
            f"{format_count(completed, 'epoch')} already. Use at least {completed}, or leave it "
            f"out."
        )
