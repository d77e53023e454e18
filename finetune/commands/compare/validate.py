"""What of a comparison can be refused before anything heavy is imported."""

from collections.abc import Sequence
from pathlib import Path

from finetune.config.load import diff_from_defaults
from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.system.files import check_writable

_APPLICABLE_KEYS = (
    "data", "cache", "imbalance", "model.kwargs", "model.pretrained_cfg", "model.drop_rate",
    "model.batch_norm", "model.grad_checkpointing", "augment.name", "probe.hflip", "probe.num_crops",
    "optim.name",
    "trainer.precision", "trainer.accelerator", "trainer.monitor", "trainer.batch_size",
    "trainer.accumulate_grad_batches", "seed",
)  # fmt: skip
"""Keys, and sections of them, that a probe or the memory of a training step depends on."""


def check_compare(
    config: Config, backbones: Sequence[str], *, weights: str, csv: Path | None
) -> None:
    """Refuse what a comparison cannot be.

    Raises:
        ConfigError: No backbone, a key that nothing here depends on, or random weights.
        ModelError: The folder of weights does not exist.
        RunFolderError: A folder stands where the CSV is to be.
        StorageError: The CSV could not be written.
    """
    if not backbones:
        raise ConfigError("No backbones: name some, as in --backbones resnet18,resnet50")
    _check_keys(config)
    if weights == "random":
        raise ConfigError(
            "--weights random cannot apply: a probe asks a backbone what it knows, and random "
            "weights know nothing. Leave it out, or name a folder of weights."
        )
    folder = Path(weights).expanduser()
    if weights != "hub" and not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise ModelError(
            f"--weights {weights} {what}. Name a folder that holds a file for each backbone, as "
            f"resnet18-82c76769.pth for resnet18, or leave it out for the hub's."
        )
    if csv is not None:
        if csv.is_dir():
            raise RunFolderError(f"--csv {csv} is a folder; name a .csv file.")
        check_writable(csv, "Choose another place for --csv.")


def check_single_process(launch: LaunchInfo | None) -> None:
    """Refuse to be one of several processes, which would all do the same.

    Raises:
        ConfigError: Says what to start instead.
    """
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"finetune compare is one process, but {launch.launcher} started {launch.world_size}. Start "
            f"one; a fit of several finds what it has computed."
        )


def _check_keys(config: Config) -> None:
    asked = diff_from_defaults(config)
    for key, instead in (("model.backbone", "--backbones"), ("model.weights", "--weights")):
        if key in asked:
            raise ConfigError(f"{key} cannot apply to a comparison. Use {instead}.")
    if config.imbalance.strategy in ("crt", "tau_norm") or config.imbalance.head_rebalancing in (
        "crt",
        "tau_norm",
    ):
        raise ConfigError(
            "crt and tau_norm cannot apply to a comparison: they begin with a trained classifier. "
            "Leave them for finetune fit; post_hoc and logit_adjusted do apply."
        )
    idle = [
        key
        for key in asked
        if not any(f"{key}.".startswith(f"{name}.") for name in _APPLICABLE_KEYS)
    ]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} cannot apply to a comparison, which only fits a probe to each "
            f"backbone. Leave it for finetune fit."
        )
