"""Options of a new run in Python: those of the command line, and the config that they make."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from finetune.errors import ConfigError
from finetune.lookup import suggest_name

if TYPE_CHECKING:
    from finetune.config.schema import Config
    from finetune.types import StrPath

OPTION_KEYS = {
    "backbone": "model.backbone",
    "weights": "model.weights",
    "epochs": "trainer.epochs",
    "batch_size": "trainer.batch_size",
    "lr": "optim.lr",
    "image_size": "data.image_size",
    "unfreeze": "unfreeze.name",
    "imbalance": "imbalance.strategy",
    "augment": "augment.name",
    "precision": "trainer.precision",
    "devices": "trainer.devices",
    "num_nodes": "trainer.num_nodes",
    "seed": "seed",
    "wandb": "tracking.wandb",
    "folds": "cross_validation.num_folds",
    "final": "cross_validation.final",
    "fold": "cross_validation.fold",
    "output": "output",
}
"""Option to the dotted config key that it sets, as on the command line."""


class FitOptions(TypedDict, total=False):
    """Options of ``fit``; each has the name, meaning and default of the command line's option."""

    backbone: str
    weights: str | Path
    epochs: int | str
    batch_size: int | str
    lr: float | str
    image_size: int | str
    unfreeze: str
    imbalance: str
    augment: str | Path
    precision: str
    devices: int | str
    num_nodes: int | str
    seed: int
    wandb: str
    folds: int
    final: str
    fold: int
    output: str | Path


def build_fit_config(
    data: "StrPath | Config",
    *,
    config: Mapping[str, Any] | None = None,
    **options: Unpack[FitOptions],
) -> "Config":
    """Return the validated config of a new run, without importing torch.

    Args:
        data: Folder or CSV of images, or a complete config, which is returned unchanged.
        config: Dotted config key to value.
        **options: Options of ``fit``; None counts as not given.

    Raises:
        ConfigError: An option or key is unknown or invalid, an option and a key contradict each
            other, or options are combined with a complete config.
        DataError: The data path does not exist.
    """
    from finetune.config.imbalance import check_imbalance
    from finetune.config.load import build_config
    from finetune.config.schema import Config
    from finetune.data.scan import check_path

    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in OPTION_KEYS:
            raise ConfigError(
                f"Unknown option '{name}'.{suggest_name(name, OPTION_KEYS)} Pass config keys as "
                f'config={{"section.key": value}}.'
            )
    if isinstance(data, Config):
        if given or config:
            names = ", ".join([*given, *(config or {})])
            raise ConfigError(f"{names}: cannot be combined with a Config; set it in the Config.")
        return data
    path = Path(data).expanduser()
    check_path(path)
    flags = {OPTION_KEYS[name]: (name, _convert_path(value)) for name, value in given.items()}
    flags["data.path"] = ("data", str(path))
    built = build_config({}, assignments=config, flags=flags, source_name="config")
    check_imbalance(built)
    return built


def _convert_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
