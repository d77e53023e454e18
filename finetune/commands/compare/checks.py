"""Checks of a comparison that run before torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from finetune.commands.early_checks.stored_files import check_no_stored_file
from finetune.config.load import diff_from_defaults
from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.system.files import check_writable
from finetune.system.given_paths import is_file, is_folder

_APPLICABLE_KEYS = (
    "data", "cache", "imbalance", "seed", "augment.name", "augment.hflip", "optim.name",
    "model.kwargs", "model.pretrained_cfg", "model.drop_rate", "model.batch_norm",
    "model.grad_checkpointing", "probe.hflip", "probe.num_crops", "probe.stages",
    "trainer.precision", "trainer.accelerator", "trainer.monitor", "trainer.batch_size",
    "trainer.accumulate_grad_batches",
)  # fmt: skip
"""Config keys and sections that a linear probe or the memory of a training step depends on."""


def check_compare(
    config: Config, backbones: Sequence[str], *, weights: str, csv: Path | None
) -> None:
    """Check the arguments of a comparison.

    Args:
        config: Config as for ``fit``.
        backbones: Names of the backbones.
        weights: "hub", or the folder of weights.
        csv: CSV file to write; None for none.

    Raises:
        ConfigError: No backbone, a config key that a probe does not depend on, or random weights,
            or the CSV is a file of a run.
        ModelError: The folder of weights does not exist.
        RunFolderError: The CSV path is a folder.
        StorageError: The CSV cannot be written.
    """
    if not backbones:
        raise ConfigError("No backbones. Name some, for example: --backbones resnet18,resnet50")
    _check_keys(config)
    if weights == "random":
        raise ConfigError(
            "--weights random cannot be used with compare: a linear probe needs pretrained "
            "weights. Leave it out, or give a folder of weights."
        )
    folder = Path(weights).expanduser()
    if weights != "hub" and not is_folder(folder):
        problem = "is a file" if is_file(folder) else "does not exist"
        raise ModelError(
            f"--weights {weights} {problem}. Give a folder with one file per backbone, for example "
            f"resnet18-82c76769.pth for resnet18, or leave it out to use the weights of the hub."
        )
    if csv is not None:
        if csv.is_dir():
            raise RunFolderError(f"--csv {csv} is a folder. Give the path of a .csv file.")
        check_no_stored_file("--csv", csv)
        check_writable(csv, "Choose another path for --csv.")


def check_single_process(launch: LaunchInfo | None) -> None:
    """Check that this is the only process: several would all do the same work.

    Raises:
        ConfigError: A launcher started several processes.
    """
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"finetune compare runs in one process, but {launch.launcher} started "
            f"{launch.world_size}. Start a single process; a later fit with several processes "
            f"reuses the cached features."
        )


def _check_keys(config: Config) -> None:
    overrides = diff_from_defaults(config)
    for key, option in (("model.backbone", "--backbones"), ("model.weights", "--weights")):
        if key in overrides:
            raise ConfigError(f"{key} cannot be used with compare. Use {option}.")
    retraining = ("crt", "tau_norm")
    imbalance = config.imbalance
    if imbalance.strategy in retraining or imbalance.head_rebalancing in retraining:
        raise ConfigError(
            "crt and tau_norm cannot be used with compare: they modify a classifier that has "
            "already been trained. Use them with finetune fit; compare supports post_hoc and "
            "logit_adjusted."
        )
    unused = [
        key
        for key in overrides
        if not any(f"{key}.".startswith(f"{prefix}.") for prefix in _APPLICABLE_KEYS)
    ]
    if unused:
        pronoun = "it" if len(unused) == 1 else "them"
        raise ConfigError(
            f"{', '.join(unused)} cannot be used with compare, which only fits a linear probe to "
            f"each backbone. Leave {pronoun} for finetune fit."
        )
