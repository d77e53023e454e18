"""Checks that the models of an ensemble are different ones."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.bundle.model_card import find_bundle
from finetune.bundle.runtimes.model_paths import find_model_file, is_hub_name
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.bundle.bundle import ModelBundle


def check_distinct_paths(paths: Sequence[Path]) -> None:
    """Check that no two paths are those of one model, as a run folder and its bundle are.

    Raises:
        ConfigError: Two are.
    """
    for (path, place), (other, other_place) in combinations(
        [(path, _find_place(path)) for path in paths], 2
    ):
        if place == other_place and path.absolute() == other.absolute():
            raise ConfigError(f"{other} is given twice. Give each model once.")
        if place == other_place:
            raise ConfigError(
                f"{other} is the model of {path}, and is given twice. Give each model once."
            )


def check_distinct_models(models: Sequence["ModelBundle"], paths: Sequence[Path]) -> None:
    """Check that no two models have the same weights and cards, as copies of a folder do.

    Args:
        models: Loaded models.
        paths: Their paths.

    Raises:
        ConfigError: Two have.
    """
    from finetune.commands.ensembles.model_digest import compute_model_digest

    digests = [compute_model_digest(model) for model in models]
    for (digest, path), (other, other_path) in combinations(zip(digests, paths, strict=True), 2):
        if digest == other:
            raise ConfigError(
                f"{path} and {other_path} are copies of one model, whose mean is that model. Give "
                f"each model once."
            )


def _find_place(path: Path) -> Path:
    """Return the folder or file that a model is read from."""
    if is_hub_name(path):
        return path
    return (find_bundle(path) or find_model_file(path) or path).resolve()
