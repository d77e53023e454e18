"""Loading of configs from YAML files, ``key=value`` assignments and flags; dumping to YAML."""

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune.config.renamed_keys import rename_key, rename_keys
from finetune.config.schema import Config
from finetune.config.section import begins_with_key, describe_invalid_value, parse_text
from finetune.errors import ConfigError
from finetune.lookup import suggest_name

AnyConfig = TypeVar("AnyConfig", bound=Config)

_ASSIGNMENT_PATTERN = re.compile(r"[A-Za-z_][\w.]*=")


class _Loader(yaml.SafeLoader):
    """YAML loader that reads 3e-4 as a number and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # rejected below, with its position
            if key in keys:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"duplicate key '{key}' in line {line}. Keep one.")
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Return a date as text: no key takes a date, and a run may be named 2026-01-31."""
        return str(self.construct_scalar(node))

    def construct_int(self, node: yaml.ScalarNode) -> int | str:
        """Return 1:30 as text: it is a range and not 90, as in base 60."""
        return node.value if ":" in node.value else self.construct_yaml_int(node)

    def construct_float(self, node: yaml.ScalarNode) -> float | str:
        """Return 0:1.5 as text, as ``construct_int`` does."""
        return node.value if ":" in node.value else self.construct_yaml_float(node)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes strings which ``_Loader`` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


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
        tree = yaml.load(text, Loader=_Loader)
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
    without quotes around it, and null where the key may be unset.

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
    return values


def _parse_value(key: str, text: str) -> Any:
    """Return the value of an assignment, as the type of its key requires."""
    annotation: Any = Config
    for name in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(name)
        annotation = None if field is None else field.annotation
    if annotation in (str, str | None):
        return parse_text(text, is_optional=annotation is not str)
    return yaml.load(text, Loader=yaml.BaseLoader if annotation == list[str] else _Loader)


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
        errors += _format_errors(error.errors(), sources, source_name)
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "Error"
        lines = "".join(f"\n  {message}" for message in errors)
        raise ConfigError(f"{count} in the config:{lines}\nFor all keys, see: finetune config")
    return config


def dump_config(config: Config) -> str:
    """Return the config as YAML, from which ``read_config_file`` restores the same values."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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
    return _flatten(config.model_dump(mode="json", exclude_unset=True))


def diff_configs(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values that differ, by dotted key."""
    old, new = (_flatten(config.model_dump(mode="json")) for config in (before, after))
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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _flatten(value, f"{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def _format_errors(
    errors: Iterable[ErrorDetails], sources: Mapping[str, str], source_name: str
) -> list[str]:
    """Return one line per invalid key, however many union members rejected its value."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_get_error_key(error), []).append(error)
    lines = []
    for key, key_errors in by_key.items():
        prefix = f"{key}."
        related = (k for k in sources if prefix.startswith(f"{k}.") or k.startswith(prefix))
        source = sources.get(next(related, ""), source_name)
        text = _describe_error(key, key_errors)
        separator = "." if begins_with_key(text, Config.model_fields.get(key)) else ": "
        lines.append(f"{key}{separator}{text} ({source})")
    return lines


def _get_error_key(error: ErrorDetails) -> str:
    """Return the dotted key of an error, without pydantic's names of union members."""
    parts: list[str] = []
    model: Any = Config
    for part in error["loc"]:
        fields = getattr(model, "model_fields", None)
        if fields is None and get_origin(model) is not dict:
            break
        parts.append(str(part))
        model = fields[part].annotation if fields and part in fields else None
    return ".".join(parts) or "config"


def _describe_error(key: str, errors: list[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if "extra_forbidden" in kinds:
        return f"unknown key.{_suggest_key(key)}"
    return describe_invalid_value(errors)


def _suggest_key(key: str) -> str:
    """Return a hint with the most similar key, else with the same key of another section."""
    known = list(_flatten(Config().model_dump())) + list(Config.model_fields)
    hint = suggest_name(key, known)
    if hint:
        return hint
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    return f" Did you mean '{same[0]}'?" if same else ""
