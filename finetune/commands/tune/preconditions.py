"""Checks of a search that run before torch is imported."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from finetune.commands.tune.space.search_space import SearchDimension
from finetune.commands.tune.space.space_validation import validate_space
from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError
from finetune.units import format_count

INSTALL_COMMAND = "pip install 'finetune-vision[tune]'"

_MIN_TRIALS = 2


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: It is not; the message has the command that installs it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            f"finetune tune needs Optuna, which is not installed. Install it: {INSTALL_COMMAND}"
        )


def check_launch(launch: LaunchInfo | None) -> None:
    """Check that no launcher started several processes.

    Raises:
        ConfigError: It did.
    """
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"finetune tune trains each trial in one process, but {launch.launcher} started "
            f"{format_count(launch.world_size, 'process')}. Start a single one; --jobs "
            f"runs several trials at the same time."
        )


def check_counts(*, num_trials: int, num_jobs: int) -> None:
    """Check the numbers of trials and of processes.

    Raises:
        ConfigError: One of them is too small, or there are more processes than trials.
    """
    if num_trials < _MIN_TRIALS:
        raise ConfigError(
            f"--trials {num_trials}: the first trial is that of the default settings, so a search "
            f"needs at least {_MIN_TRIALS}."
        )
    if not 1 <= num_jobs <= num_trials:
        raise ConfigError(
            f"--jobs {num_jobs}: expected a number of processes from 1 to the {num_trials} trials."
        )


def validate_search(
    config: Config, space: Sequence[SearchDimension]
) -> tuple[SearchDimension, ...]:
    """Return the validated dimensions, after checks of what is known before images are read.

    Args:
        config: Config as given.
        space: Dimensions of the user; empty for the default ones.

    Raises:
        ConfigError: A setting or a searched key cannot apply to a search.
    """
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    for key, count in (("trainer.devices", devices), ("trainer.num_nodes", nodes)):
        if count not in ("auto", 1):
            raise ConfigError(
                f"{key}={count} cannot be used with tune: a trial trains in one process. Leave it "
                f"out; --jobs runs several trials at the same time."
            )
    if config.cross_validation.num_folds is not None:
        raise ConfigError(
            "cross_validation.num_folds cannot be used with tune: trials share one validation "
            "split. Search first, then: finetune fit --config best.yaml --folds 5"
        )
    if config.resume != "never":
        raise ConfigError("resume=auto cannot be used with tune. Use --resume FOLDER.")
    return tuple(validate_space(space, config))


def check_unresumable(given: Sequence[str], resume: Path) -> None:
    """Check that no option is given that a resumed study would ignore.

    Raises:
        ConfigError: There is one; the message names it.
    """
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise ConfigError(
            f"{', '.join(given)} {verb} not for a resumed study: {resume} has its own settings. "
            f"Leave {'it' if len(given) == 1 else 'them'} out; --trials, --timeout and --jobs may "
            f"change."
        )
