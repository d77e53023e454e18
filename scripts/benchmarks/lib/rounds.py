"""Options, alternating rounds, medians with ranges, and the description of the machine.

Imports neither torch nor finetune: the decoding processes of input_pipeline.py import this module.
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

WIDTH = 96  # columns of the printed description

Result = TypeVar("Result")


def create_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options common to all benchmarks with rounds."""
    parser = ArgumentParser(
        description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--quick", action="store_true", help="few images and rounds, to try the script"
    )
    parser.add_argument("--json", type=Path, help="JSON file for all measurements")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    return parser


def set_missing(options: Namespace, defaults: Mapping[str, Any]) -> None:
    """Set the options that were not given to their defaults."""
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def run_rounds(
    contenders: Mapping[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Return the results of each contender; each round starts with another one."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            results[name].append(contenders[name]())
    return results


def compute_ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of two contenders per round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def format_two_decimals(value: float) -> str:
    """Return a number with two decimals."""
    return f"{value:.2f}"


def format_spread(
    values: Sequence[float], *, format_value: Callable[[float], str] = format_two_decimals
) -> str:
    """Return "median [minimum-maximum]"."""
    low, high = format_value(min(values)), format_value(max(values))
    return f"{format_value(statistics.median(values)):>5} [{low}-{high}]"


def read_processor_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    names: list[str] = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return names[0] if names else platform.processor()


def format_versions(libraries: Iterable[str]) -> str:
    """Return the versions of Python and of libraries; "-" for a missing one."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    names = [f"{name} {installed.get(name, '-')}" for name in libraries]
    return ", ".join([f"Python {platform.python_version()}", *names])


def print_environment(environment: Mapping[str, str]) -> None:
    """Print the description of the machine, one paragraph per entry."""
    for name, value in environment.items():
        text = f"{name}: {value}"
        print(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write all measurements as JSON, if a file was requested."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2), encoding="utf-8")
