"""Checks of options of ``fit`` that contradict each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError


def check_lr_find(*, lr_find: bool, resume: Path | None, dry_run: bool) -> None:
    """Check that no option is given that contradicts ``--lr-find``."""
    if lr_find and resume is not None:
        raise ConfigError(
            "--lr-find cannot be used with --resume: it tests the learning rates of a new run, "
            "before its first epoch. Leave one of them out."
        )
    if lr_find and dry_run:
        raise ConfigError(
            "--lr-find cannot be used with --dry-run, which trains no step. Leave one of them out."
        )


def check_learning_check(*, check: bool, resume: Path | None, dry_run: bool, lr_find: bool) -> None:
    """Check that no option is given that contradicts ``--check``."""
    others = {"--resume": resume is not None, "--dry-run": dry_run, "--lr-find": lr_find}
    given = [name for name, is_given in others.items() if is_given]
    if check and given:
        raise ConfigError(
            f"--check cannot be used with {given[0]}: it trains a few images of a new run for "
            f"about a minute, and creates no run folder. Leave one of them out."
        )


def check_layers(*, layers: bool, dry_run: bool, has_folds: bool) -> None:
    """Check that ``--layers`` is given with the plan of one run."""
    if layers and not dry_run:
        raise ConfigError("--layers needs --dry-run: it is part of the plan. Add --dry-run.")
    if layers and has_folds:
        raise ConfigError(
            "--layers cannot be used with --folds, whose runs all have the same layers. Leave "
            "--folds out."
        )


def check_resume_options(config_file: Path | None, flags: Mapping[str, tuple[str, Any]]) -> None:
    """Check that no option is given that a resumed run would ignore."""
    if config_file is not None:
        raise ConfigError(
            "--config cannot be used with --resume: the run folder has its own config.yaml."
        )
    if "output" in flags:
        raise ConfigError(
            "--output cannot be used with --resume: a resumed run stays in its folder."
        )
