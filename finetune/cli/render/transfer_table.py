"""Table of a transfer experiment."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from finetune.units import format_duration, format_percent

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def show_transfer(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Print the test accuracy by number of images and method, and where the files are.

    Args:
        reporter: Console.
        tree: Result of the experiment, as ``TransferResult.to_json`` gives it.
    """
    rows = tree["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {
        (row["images_per_class"], row["method"]): format_percent(row["metrics"]["accuracy"])
        for row in rows
    }
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("images per class", justify="right", no_wrap=True)
    for method in methods:
        table.add_column(method, justify="right", no_wrap=True)
    for size in sorted({size for size, _ in cells}):
        table.add_row(str(size), *(cells[size, method] for method in methods))
    reporter.note(
        f"\nTest accuracy on {', '.join(tree['target'])} ({tree['num_test_images']} images); the "
        f"features are those of a network trained on {', '.join(tree['source'])}, which it tells "
        f"apart with {format_percent(tree['source_accuracy'])}:"
    )
    reporter.console.print(table)
    widest = max((row["interval"][1] - row["interval"][0]) / 2 for row in rows)
    reporter.note(f"95% intervals reach up to {100 * widest:.1f} points to either side.")
    reporter.print_pairs(
        {
            "table": f"{tree['folder']}/transfer.csv",
            "chart": f"{tree['folder']}/transfer.svg",
            "total": format_duration(tree["seconds"]),
        }
    )
