"""Arguments of the commands that train or audit: the data, config keys, and the config of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.config.schema import Config


def split_args(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the data path among the positional arguments (None without one), and the assignments.

    Raises:
        ConfigError: There are two paths.
    """
    from finetune.config.load import is_assignment

    paths = [arg for arg in args if not is_assignment(arg)]
    if len(paths) > 1:
        hint = ""
        if all(path.endswith(".parquet") for path in paths):
            hint = " For several Parquet files, give their folder, or a pattern in quotation marks."
        raise ConfigError(f"Two data paths were given, {paths[0]} and {paths[1]}; keep one.{hint}")
    return (paths[0] if paths else None), [arg for arg in args if is_assignment(arg)]


def build_run_config(
    data_path: str | None,
    assignments: Mapping[str, Any],
    flags: Mapping[str, tuple[str, Any]],
    config_file: Path | None,
) -> "Config":
    """Return the config of a new run, validated as far as possible without importing torch.

    Args:
        data_path: Positional DATA argument; None leaves ``data.path`` to the other sources.
        assignments: Dotted config key to value of KEY=VALUE arguments.
        flags: Dotted config key to (option, value).
        config_file: YAML file of config keys.

    Raises:
        ConfigError: Invalid keys or values (all of them in one message), no data path, or
            contradicting settings.
        DataError: The data path does not exist.
    """
    from finetune.config.imbalance import check_imbalance
    from finetune.config.load import build_config, read_config_file
    from finetune.data.scan import check_path

    tree = {} if config_file is None else read_config_file(config_file)
    if data_path is not None:
        flags = {**flags, "data.path": ("DATA", data_path)}
    config = build_config(tree, assignments=assignments, flags=flags, source_name=str(config_file))
    if config.data.path is None:
        raise ConfigError(
            "No data path. Give a folder, a CSV or Parquet, for example: finetune fit photos/"
        )
    check_path(Path(config.data.path).expanduser())
    check_imbalance(config)
    return config
