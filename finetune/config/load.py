"""Loading of configs from YAML files, ``key=value`` assignments and flags; dumping to YAML."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from finetune.config.renamed_keys import rename_key, rename_keys
from finetune.config.schema import Config
from finetune.config.section import YamlForm, parse_text
from finetune.config.text.error_lines import format_errors
from finetune.config.text.flat_keys import flatten_keys
from finetune.config.text.yaml_dialect import ConfigDumper, ConfigLoader, TextLoader
from finetune.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)

_ASSIGNMENT_PATTERN = re.compile(r"[A-Za-z_][\w.]*=")


def is_assignment(arg: str) -> bool:
    """Return whether an argument is ``key=value`` and not a path."""
    return _ASSIGNMENT_PATTERN.match(arg) is not None


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the nested values of a YAML file.

    Raises:
        ConfigError: The file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the config file {path}: {error.strerror}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text. Use a YAML file.") from error
    try:
        tree = yaml.load(text, Loader=ConfigLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "invalid YAML"
        raise ConfigError(f"{path}{line}: {problem}. Fix the file.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} contains a {type(tree).__name__} instead of a mapping.")
    return {str(key): value for key, value in tree.items()}


def parse_assignments(args: Iterable[str]) -> dict[str, Any]:
    """Return the values of ``key=value`` arguments by dotted key.

    Values are read as YAML, but for keys that take any text: these have the text as it is typed,
    without quotes around it, and null where the key may be unset. Those of them that may be lists
    or mappings in a config file are so with brackets here, too.

    Raises:
        ConfigError: A key is given twice, or a value is not YAML.
    """
    values: dict[str, Any] = {}
    for arg in args:
        key, _, text = arg.partition("=")
        if key in values:
            raise ConfigError(f"{key} is given twice on the command line. Keep one.")
        try:
            values[key] = _parse_value(rename_key(key), text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{arg}: the value is not valid YAML. Quote it.") from error
        except ConfigError as error:
            raise ConfigError(f"{arg}: {error}") from error
    return values


def _parse_value(key: str, text: str) -> Any:
    """Return the value of an assignment, as the type of its key requires."""
    annotation: Any = Config
    opening = None
    for name in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(name)
        annotation = None if field is None else field.annotation
        forms = () if field is None else field.metadata
        opening = next((one.opening for one in forms if isinstance(one, YamlForm)), None)
    if opening is not None and text.startswith(opening):
        return yaml.load(text, Loader=TextLoader)
    if annotation in (str, str | None):
        return parse_text(text, is_optional=annotation is not str)
    return yaml.load(text, Loader=yaml.BaseLoader if annotation == list[str] else ConfigLoader)


def build_config(
    tree: Mapping[str, Any],
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    source_name: str = "config file",
) -> Config:
    """Return the validated config; flags override assignments, which override the tree.

    Args:
        tree: Nested values of a config file or a run folder.
        assignments: Dotted keys to values of ``key=value`` arguments.
        flags: Dotted keys to option names and values, such as ``--lr``.
        source_name: Name of ``tree`` in messages.

    Raises:
        ConfigError: There are errors; the message has all of them, each with its key, its value and
            the most similar name.
    """
    merged = _copy_tree(rename_keys(tree))
    errors: list[str] = []
    sources: dict[str, str] = {}
    assignments = _rename_assignments(assignments or {}, errors)
    for key, value in assignments.items():
        if _set_value(merged, key, value, errors):
            sources[key] = "command line"
    for key, (flag, value) in (flags or {}).items():
        if key in assignments and assignments[key] != value:
            errors.append(f"{key}: {flag} {value} contradicts {key}={assignments[key]}; keep one")
            continue
        if _set_value(merged, key, value, errors):
            sources[key] = flag
    try:
        # again, for parameters of a sampler that the tree does not name
        config = Config.model_validate(rename_keys(merged))
    except ValidationError as error:
        errors += format_errors(error.errors(), sources, source_name)
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "Error"
        lines = "".join(f"\n  {message}" for message in errors)
        raise ConfigError(f"{count} in the config:{lines}\nFor all keys, see: finetune config")
    return config


def dump_config(config: Config) -> str:
    """Return the config as YAML, from which ``read_config_file`` restores the same values."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True)


def dump_commented_defaults() -> str:
    """Return the default config as YAML, with a comment above each key."""
    lines = [
        "# All config keys with their defaults. Keep the keys that you change and delete the rest."
    ]
    defaults = Config()
    top: list[str] = []
    for name, field in Config.model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, BaseModel):
            lines += ["", f"# {type(value).__doc__}", f"{name}:"]
            for key, inner in type(value).model_fields.items():
                lines.append(f"  # {inner.description}")
                lines.append(f"  {key}: {_format_scalar(getattr(value, key))}")
        else:
            top += ["", f"# {field.description}", f"{name}: {_format_scalar(value)}"]
    return "\n".join(lines + top) + "\n"


def diff_from_defaults(config: Config) -> dict[str, Any]:
    """Return the values that differ from the defaults, by dotted key."""
    return {key: after for key, (_, after) in diff_configs(Config(), config).items()}


def get_explicit_values(config: Config) -> dict[str, Any]:
    """Return the values that were set explicitly, even to the default, by dotted key."""
    return flatten_keys(config.model_dump(mode="json", exclude_unset=True))


def diff_configs(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values that differ, by dotted key."""
    old, new = (flatten_keys(config.model_dump(mode="json")) for config in (before, after))
    return {key: (old[key], value) for key, value in new.items() if value != old[key]}


def replace_values(config: AnyConfig, values: Mapping[str, Any]) -> AnyConfig:
    """Return a validated config of the same type with new values for dotted keys."""
    tree = config.model_dump()
    for key, value in values.items():
        _set_value(tree, key, value, [])
    return type(config).model_validate(tree)


def _format_scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _rename_assignments(assignments: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    """Return assignments by present keys; append an error for a key that is given by both names."""
    renamed: dict[str, Any] = {}
    for key, value in assignments.items():
        new_key = rename_key(key)
        if new_key in renamed:
            errors.append(f"{new_key}: given twice, also by a former name of the key; keep one")
        renamed[new_key] = value
    return renamed


def _copy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy_tree(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _set_value(tree: dict[str, Any], dotted_key: str, value: Any, errors: list[str]) -> bool:
    """Set ``a.b.c`` in nested dicts; append an error if a parent is not a dict."""
    *parents, last = dotted_key.split(".")
    for depth, name in enumerate(parents):
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            errors.append(
                f"{dotted_key}: '{'.'.join(parents[: depth + 1])}' is a value, not a section"
            )
            return False
        tree = child
    tree[last] = _copy_tree(value) if isinstance(value, Mapping) else value
    return True
