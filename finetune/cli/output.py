"""How a verb answers: tables for a person, or one JSON object on standard output."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.cli.console import ConsoleReporter


def console_reporter(*, json: bool = False) -> "ConsoleReporter":
    """Return the console; rich is not imported for a mere --help."""
    from finetune.cli.console import ConsoleReporter

    return ConsoleReporter(json=json)


def show_result(
    reporter: "ConsoleReporter",
    tree: dict[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Print the tree as JSON where that was asked for, else show it."""
    if reporter.json:
        print_json(tree)
    else:
        show(tree)


def print_json(tree: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
