"""Config files, ``key=value`` words and flags as one checked tree; and the way back to YAML."""

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune.config.renamed_keys import rename_key, rename_keys
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.lookup import suggest_name

AnyConfig = TypeVar("AnyConfig", bound=Config)

_ASSIGNMENT_PATTERN = re.compile(r"[A-Za-z_][\w.]*=")


class _Loader(yaml.SafeLoader):
    """YAML that reads 3e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"key '{key}' stands twice, again in line {line}; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Leave it a word: no key takes a date, and a run may be named 2026-01-31."""
        return str(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """YAML that quotes the words which ``_Loader`` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)


def is_assignment(arg: str) -> bool:
    """Tell a ``key=value`` word from a path."""
    return _ASSIGNMENT_PATTERN.match(arg) is not None


def read_config_file(path: Path) -> dict[str, Any]:
    """Return a YAML file's tree.

    Raises:
        ConfigError: The file is missing, not YAML, or not a tree of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the config file {path}: {error.strerror}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8. Give a YAML file.") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigError(f"{path}{line}: {problem}. Mend the file.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not keys and values.")
    return {str(key): value for key, value in tree.items()}


def parse_assignments(args: Iterable[str]) -> dict[str, Any]:
    """Return dotted key to value for ``key=value`` words; values are read as YAML.

    Raises:
        ConfigError: A key stands twice, or a value is not YAML.
    """
    values: dict[str, Any] = {}
    for word in args:
        key, _, text = word.partition("=")
        if key in values:
            raise ConfigError(f"{key} is given twice on the command line; keep one.")
        try:
            values[key] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: the value is not YAML. Quote it.") from error
    return values


def build_config(
    tree: Mapping[str, Any],
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    source_name: str = "config file",
) -> Config:
    """Return the checked tree; what is said later wins: file, then ``key=value``, then flags.

    Args:
        tree: Nested values of a config file or a run folder.
        assignments: Dotted key to value, from ``key=value`` words.
        flags: Dotted key to (flag, value), from options such as ``--lr``.
        source_name: What ``tree`` is called in messages.

    Raises:
        ConfigError: All mistakes at once, each with its key, the value seen and the nearest name.
    """
    merged = _copy_tree(rename_keys(tree))
    assignments = {rename_key(key): value for key, value in (assignments or {}).items()}
    mistakes: list[str] = []
    sources: dict[str, str] = {}
    for key, value in assignments.items():
        if _set_value(merged, key, value, mistakes):
            sources[key] = "command line"
    for key, (flag, value) in (flags or {}).items():
        if key in assignments and assignments[key] != value:
            mistakes.append(f"{key}: {flag} {value} and {key}={assignments[key]} differ; keep one")
            continue
        if _set_value(merged, key, value, mistakes):
            sources[key] = flag
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        mistakes += _format_errors(error.errors(), sources, source_name)
    if mistakes:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "A mistake"
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigError(f"{count} in the configuration:{lines}\nSee all keys: finetune config")
    return config


def dump_config(config: Config) -> str:
    """Return the tree as YAML that ``read_config_file`` reads back to the same tree."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_commented_defaults() -> str:
    """Return the whole default tree as YAML, each key under a comment that explains it."""
    lines = ["# Every key of finetune with its default. Keep what you change, drop the rest."]
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
    """Return dotted key to value for everything that is not at its default."""
    return {key: after for key, (_, after) in diff_configs(Config(), config).items()}


def get_explicit_values(config: Config) -> dict[str, Any]:
    """Return dotted key to value for everything that was said, be it the default or not."""
    return _flatten(config.model_dump(mode="json", exclude_unset=True))


def diff_configs(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return dotted key to (old, new) value for everything that differs."""
    old, new = (_flatten(config.model_dump(mode="json")) for config in (before, after))
    return {key: (old[key], value) for key, value in new.items() if value != old[key]}


def replace_values(config: AnyConfig, values: Mapping[str, Any]) -> AnyConfig:
    """Return a config of the same type with dotted keys set to new values, validated again."""
    tree = config.model_dump()
    for key, value in values.items():
        _set_value(tree, key, value, [])
    return type(config).model_validate(tree)


def _format_scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


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


def _set_value(tree: dict[str, Any], dotted_key: str, value: Any, mistakes: list[str]) -> bool:
    """Set ``a.b.c`` in nested dicts, or note that the path runs through a plain value."""
    *parents, last = dotted_key.split(".")
    for depth, name in enumerate(parents):
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            mistakes.append(
                f"{dotted_key}: '{'.'.join(parents[: depth + 1])}' holds a value, not keys"
            )
            return False
        tree = child
    tree[last] = value
    return True


def _format_errors(
    errors: Iterable[ErrorDetails], sources: Mapping[str, str], source_name: str
) -> list[str]:
    """Return one line for each key that is wrong, however many union members refused its value."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_get_error_key(error), []).append(error)
    lines = []
    for key, found in by_key.items():
        source = next(
            (s for k, s in sources.items() if k == key or k.startswith(f"{key}.")), source_name
        )
        lines.append(f"{key}: {_describe_error(key, found)} ({source})")
    return lines


def _get_error_key(error: ErrorDetails) -> str:
    """Return the dotted key without pydantic's names of union members."""
    parts: list[str] = []
    model: Any = Config
    for part in error["loc"]:
        fields = getattr(model, "model_fields", None)
        if fields is None:
            break
        parts.append(str(part))
        model = fields[part].annotation if part in fields else None
    return ".".join(parts) or "config"


def _describe_error(key: str, errors: list[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    value = errors[0]["input"]
    if "extra_forbidden" in kinds:
        return f"unknown key.{_suggest_key(key)}"
    if "model_type" in kinds:
        return f"{value!r} is a value, but this is a section with keys of its own"
    expected = []
    for error in errors:
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected.append(message.removeprefix("a valid "))
    if kinds == {"value_error"}:
        return expected[0]
    return f"found {value!r}, expected {' or '.join(dict.fromkeys(expected))}"


def _suggest_key(key: str) -> str:
    """Return the nearest full key: in the same section, else by its last part anywhere."""
    known = list(_flatten(Config().model_dump())) + list(Config.model_fields)
    hint = suggest_name(key, known)
    if hint:
        return hint
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    return f" Did you mean '{same[0]}'?" if same else ""
