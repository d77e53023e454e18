"""Checks of the options of predict that depend on how its processes were started."""

from collections.abc import Mapping
from typing import Any

from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError


def check_shard_options(others: Mapping[str, Any]) -> None:
    """Check that no option is set that cannot apply to predictions in parts.

    Args:
        others: Value of each such option; None where it is not set.

    Raises:
        ConfigError: One is.
    """
    for option, value in others.items():
        if value is not None:
            raise ConfigError(
                f"{option} {value} cannot apply with --shards, which writes a folder of Parquet "
                f"files. Leave out one of them."
            )


def check_single_process(part_size: int | None) -> None:
    """Check that predict without ``--shards`` is one process, and has no size of parts.

    Raises:
        ConfigError: Several processes were started, or there is a size of parts.
    """
    if part_size is not None:
        raise ConfigError(
            f"--part-size {part_size} is that of the files of --shards. Add --shards FOLDER, or "
            f"leave it out."
        )
    launch = detect_launch()
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"{launch.world_size} processes were started ({launch.launcher}), and each would "
            f"predict all images. Add --shards FOLDER, with which they share the work, or start "
            f"one process."
        )
