"""What benchmarks in rounds share: options, turns between contenders, spreads, and where they ran.

Imports neither torch nor finetune: the processes that decode for input_pipeline.py import this.
"""

import gc
import importlib.metadata
import json
import platform
import re
import statistics
import textwrap
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

WIDTH = 96  # columns of what is printed

Result = TypeVar("Result")


def new_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that every benchmark in rounds has."""
    parser = ArgumentParser(
        description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="few images and rounds, to try it")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    return parser


def set_missing(options: Namespace, defaults: Mapping[str, Any]) -> None:
    """Fill the options that were not given."""
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def take_turns(
    contenders: Mapping[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Return each contender's results; every round starts with another of them."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            results[name].append(contenders[name]())
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of two contenders in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def two_decimals(value: float) -> str:
    """Return a number with two decimals."""
    return f"{value:.2f}"


def spread(values: Sequence[float], *, figure: Callable[[float], str] = two_decimals) -> str:
    """Return the median, with the least and the most, each written by ``figure``."""
    low, high = figure(min(values)), figure(max(values))
    return f"{figure(statistics.median(values)):>5} [{low}-{high}]"


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return (names or [platform.processor()])[0]


def versions(libraries: Iterable[str]) -> str:
    """Return the versions of Python and of libraries; "-" stands for one that is missing."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    found = [f"{name} {installed.get(name, '-')}" for name in libraries]
    return ", ".join([f"Python {platform.python_version()}", *found])


def print_environment(found: Mapping[str, str]) -> None:
    """Print what the figures depend on, a paragraph each."""
    for name, value in found.items():
        text = f"{name}: {value}"
        print(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write every single figure, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2), encoding="utf-8")
