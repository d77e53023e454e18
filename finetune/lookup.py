"""Lookup of components by name or ``package.module:attribute``, and checks of their parameters."""

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune.errors import ConfigError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
"""Begin of an address; a drive of Windows has one letter."""


def suggest_name(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest candidate, else the list of at most 12 names."""
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if 0 < len(names) <= 12 else ""


def suggest_path(path: Path) -> str:
    """Return " Did you mean 'a/b'?" for the entry of a folder with the closest name, else ""."""
    with suppress(OSError):
        names = (entry.name for entry in path.parent.iterdir())
        others = [name for name in names if name != path.name]  # a broken link has the same name
        close = difflib.get_close_matches(path.name, others, n=1, cutoff=0.6)
        return f" Did you mean '{path.with_name(close[0])}'?" if close else ""
    return ""


def explain_missing(path: Path, remedy: str) -> str:
    """Return what to say on a path that does not exist, with the one that may be meant.

    Addresses, such as https://…, are no paths: a ``Path`` of one has lost a slash.

    Args:
        path: Path that does not exist.
        remedy: Sentence on what to do.
    """
    if match := _ADDRESS.match(path.as_posix()):
        address = f"{match[1]}://{path.as_posix()[match.end() :]}"
        return (
            f"{address} is an address, which is not opened. Download its files, and give their "
            f"path."
        )
    return f"{path} does not exist.{suggest_path(path)} {remedy}"


def is_import_path(name: str) -> bool:
    """Return whether a backbone is named as ``package.module:function``, not by a timm name."""
    return ":" in name and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def find_module_locations(module_name: str) -> list[Path]:
    """Return the files and folders that the top-level package of a module is imported from.

    Empty where they are unknown.
    """
    package = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return []  # reported when it is imported
    except ValueError:  # a script has no spec
        file = getattr(sys.modules.get(package), "__file__", None)
        return [] if file is None else [Path(file).absolute()]
    if spec is None:
        return []
    places = [spec.origin] if spec.origin is not None and spec.has_location else []
    return [Path(place).absolute() for place in (*places, *(spec.submodule_search_locations or ()))]


def find_module_inside(module_name: str, folder: Path) -> Path | None:
    """Return the place of a module that is imported from inside of a folder; None for another."""
    root = folder.resolve()
    places = find_module_locations(module_name)
    return next((place for place in places if place.resolve().is_relative_to(root)), None)


def look_up(table: Mapping[str, Any], name: str, *, setting: str) -> Any:
    """Return the entry of a table, or the object at ``package.module:attribute``.

    Args:
        table: Mapping of names to entries.
        name: A key of ``table``, or an importable ``package.module:attribute``.
        setting: Config key that holds ``name``, for error messages.

    Raises:
        ConfigError: There is no such entry, module or attribute.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise ConfigError(
            f"{setting}: unknown name '{name}'.{suggest_name(name, table)} "
            f"To use your own code, write 'my_package.module:function'."
        )
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or ":" in attribute:
        missing = "module" if attribute else "function"
        problem = "has two colons" if ":" in attribute else f"names no {missing}"
        raise ConfigError(
            f"{setting}: '{name}' {problem}. Write package.module:function, as in "
            f"{module_name or 'my_package.module'}:{attribute.partition(':')[0] or 'build'}."
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # relative name
        is_file = module_name.endswith(".py") or "/" in module_name
        as_module = module_name.removesuffix(".py").strip("./").replace("/", ".")
        remedy = (
            f"Name the module, not its file, as in {as_module}:{attribute}."
            if is_file
            else "Install the package, or run from the folder that contains it."
        )
        raise ConfigError(
            f"{setting}={name}: cannot import '{module_name}': {error}. {remedy}"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{setting}: module '{module_name}' has no '{attribute}'."
            f"{suggest_name(attribute, _list_functions(module))}"
        ) from None


def _list_functions(module: ModuleType) -> list[str]:
    """Return the public names of a module, without those that it imports from others."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name or accepts any keyword."""
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_params(
    function: Callable[..., Any], params: Mapping[str, Any], *, num_positional: int, setting: str
) -> None:
    """Check that ``function`` accepts every key of ``params`` and requires no other.

    Args:
        function: Function to be called.
        params: Keyword arguments from the config.
        num_positional: Number of leading positional arguments that the caller supplies.
        setting: Config key that holds ``params``, for error messages.

    Raises:
        ConfigError: A parameter is unknown, or a required one is missing.
    """
    if not callable(function):
        raise ConfigError(f"{setting}: {function!r} is not callable.")
    parameters = list(inspect.signature(function).parameters.items())[num_positional:]
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for _, parameter in parameters)
    accepted = {
        name: parameter
        for name, parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    unknown = [name for name in params if name not in accepted and not accepts_any]
    if unknown:
        hint = suggest_name(unknown[0], accepted) if accepted else " It takes no parameters."
        raise ConfigError(f"{setting}: unknown parameter '{unknown[0]}'.{hint}")
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in params]
    if missing:
        raise ConfigError(f"{setting}: parameter '{missing[0]}' is required.")
