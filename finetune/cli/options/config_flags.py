"""Options that set config keys, and the values that were given."""

from collections.abc import Mapping
from typing import Any

FLAG_KEYS = {
    "--backbone": "model.backbone",
    "--weights": "model.weights",
    "--epochs": "trainer.epochs",
    "--batch-size": "trainer.batch_size",
    "--lr": "optim.lr",
    "--image-size": "data.image_size",
    "--unfreeze": "unfreeze.name",
    "--imbalance": "imbalance.strategy",
    "--augment": "augment.name",
    "--precision": "trainer.precision",
    "--devices": "trainer.devices",
    "--num-nodes": "trainer.num_nodes",
    "--seed": "seed",
    "--wandb": "tracking.wandb",
    "--folds": "cross_validation.num_folds",
    "--final": "cross_validation.final",
    "--fold": "cross_validation.fold",
    "--output": "output",
}
"""Option to the dotted config key that it sets."""

SWITCHES = {"--no-report": ("report.enabled", "off")}
"""Option without a value to the dotted config key and the value that it sets."""


def collect_flags(values: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return config key to (option, value) of the options that were given.

    Args:
        values: Option to its value; None or False where it was not given.
    """
    given = {flag: value for flag, value in values.items() if value is not None}
    flags = {FLAG_KEYS[flag]: (flag, value) for flag, value in given.items() if flag in FLAG_KEYS}
    switches = {
        key: (flag, value) for flag, (key, value) in SWITCHES.items() if given.get(flag, False)
    }
    return {**flags, **switches}
