"""State of a run: complete, trained or stopped early, and where it resumes."""

from finetune.builders import Training, find_final_imbalance_phases
from finetune.commands.measurement.refit_choice import read_refit_choice
from finetune.commands.stored_run import read_stored_config
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.early_stopping import EarlyStop, find_early_stop
from finetune.training.checkpoint_io import read_checkpoint, read_resume_state


def describe_phase_shifts(run: RunFolder, training: Training) -> list[str]:
    """Return a warning for each last phase of the imbalance schedule that a new length shifts.

    Args:
        run: Run folder, with the config before.
        training: Training of the resumed run.
    """
    state = read_resume_state(run)
    stored = read_stored_config(run)
    num_epochs = training.config.trainer.epochs
    if state is None or stored.trainer.epochs == num_epochs or training.is_probe_only:
        return []
    old_phases = find_final_imbalance_phases(ResolvedConfig.from_config(stored), training.data)
    new_phases = find_final_imbalance_phases(training.config, training.data)
    warnings = []
    for part, (setting, start) in new_phases.items():
        _, old_start = old_phases[part]
        if start == old_start:
            continue
        is_undone = old_start < state.completed_epochs < start
        return_note = " The epochs until then repeat the phase before it." if is_undone else ""
        warnings.append(
            f"{setting}: the last phase starts in epoch {start + 1} of {num_epochs}, and in epoch "
            f"{old_start + 1} of {stored.trainer.epochs} before. Completed epochs stay as they are."
            f"{return_note} To apply one schedule to all {num_epochs} epochs, start a new run."
        )
    return warnings


def describe_resume_point(run: RunFolder, config: ResolvedConfig) -> str:
    """Return a sentence on where a run resumes.

    Args:
        run: Run folder.
        config: Config of the resumed run.
    """
    state = read_resume_state(run)
    if state is None:
        return _describe_restart(run, config)
    if state.steps_in_epoch:
        return (
            f"Resuming in epoch {state.completed_epochs + 1}, after {state.steps_in_epoch} of its "
            f"steps."
        )
    return f"Resuming after epoch {state.completed_epochs}."


def is_complete(run: RunFolder, config: Config) -> bool:
    """Return whether a run has trained for these epochs and written its bundle.

    A run that stopped early is not complete with a patience that lets it train on.
    """
    if not (run.done_marker_path.is_file() and run.bundle_dir.is_dir()):
        return False
    if run.done_marker_path.read_text(encoding="utf-8").strip() != str(config.trainer.epochs):
        return False
    state = read_resume_state(run)
    if state is None or state.completed_epochs >= _count_epochs(run, config):
        return True
    return find_run_early_stop(run, config) is not None


def is_trained(run: RunFolder, config: ResolvedConfig) -> bool:
    """Return whether a run has completed its last epoch, or its probe if it has no epochs."""
    if config.is_probe_only:
        return run.best_checkpoint_path.is_file()
    state = read_resume_state(run)
    num_epochs = _count_epochs(run, config)
    if state is None:
        return num_epochs == 0 and run.best_checkpoint_path.is_file()
    if state.completed_epochs >= num_epochs:
        return True
    return find_run_early_stop(run, config) is not None


def _count_epochs(run: RunFolder, config: Config) -> int:
    """Return the epochs that a run trains, fewer than its schedule has if folds chose so."""
    choice = read_refit_choice(run)
    return int(config.trainer.epochs) if choice is None else choice.num_epochs


def find_run_early_stop(run: RunFolder, config: Config) -> EarlyStop | None:
    """Return when and why a run has stopped before its last epoch; None if it has not."""
    if not run.last_checkpoint_path.is_file():
        return None
    return find_early_stop(
        read_checkpoint(run.last_checkpoint_path),
        patience=config.trainer.early_stopping_patience,
        num_epochs=int(config.trainer.epochs),
        monitor=f"val/{config.checkpoint.monitor}",
    )


def _describe_restart(run: RunFolder, config: ResolvedConfig) -> str:
    """Return a sentence on where a run without completed steps resumes."""
    has_no_epochs = config.is_probe_only or _count_epochs(run, config) == 0
    if has_no_epochs and run.best_checkpoint_path.is_file():
        return "The linear probe is saved; its model remains to be evaluated and written."
    if config.probe.enabled == "on":
        start = "starting with the linear probe, from cached features."
    else:
        start = "starting with the first epoch."
    # a refit begins as a run that is resumed
    is_refit = read_refit_choice(run) is not None
    return start.capitalize() if is_refit else f"No checkpoint was saved; {start}"
