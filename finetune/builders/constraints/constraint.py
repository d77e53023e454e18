"""A combination of settings that cannot run."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune.builders.resolve import RunSpec
from finetune.config.auto import get_config_value
from finetune.config.resolved import ResolvedConfig
from finetune.errors import ConfigError, FinetuneError
from finetune.units import format_value

Predicate = Callable[[ResolvedConfig, RunSpec], bool]


@dataclass(frozen=True, slots=True)
class Constraint:
    """Combination of settings that cannot run.

    Attributes:
        keys: Dotted keys: the setting that is rejected, then those that it conflicts with.
        is_violated: Function of the config and the run; true if the run violates the constraint.
        reason: Why it is a conflict and what to do; a format string of ``run`` and ``config``.
        error: Class of the exception.
    """

    keys: tuple[str, ...]
    is_violated: Predicate
    reason: str
    error: type[FinetuneError] = ConfigError

    def format_message(self, run: RunSpec) -> str:
        """Return the message for a run that violates the constraint; it names all keys."""
        first, *others = (
            f"{key}={format_value(get_config_value(run.config, key))}" for key in self.keys
        )
        conflict = f" cannot apply to {' and '.join(others)}" if others else ""
        return f"{first}{conflict}: {self.reason.format(run=run, config=run.config)}"


def is_sharded(config: ResolvedConfig) -> bool:
    """Return whether each process holds a part of the network only."""
    return config.trainer.strategy != "ddp"
