"""The command ``report``: its options and its output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result
from finetune.errors import ConfigError
from finetune.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folder, cross-validation or bundle; several are compared.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write.  [RUN/report.html; comparison.html for several runs]"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Held-out images that the page is about: val or test.  [test if any]"),
    ] = None,
    images: Annotated[
        bool,
        typer.Option("--images/--no-images", help="Show images and pictures of the network."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
) -> None:
    """Write what is known of a run, or compare runs, as one HTML page."""
    with exit_on_stop_request():
        reporter = build_console_reporter(json_output=as_json)
        if split not in (None, "val", "test"):
            raise ConfigError(f"--split {split}: unknown split. Choose val or test.")
        from finetune.commands.early_checks.named_runs import check_named_runs

        check_named_runs(runs)  # before torch is imported

        from finetune.commands.report.report import PHOTO_SECONDS
        from finetune.commands.report.report import report as command

        photo_seconds = PHOTO_SECONDS if images else 0.0
        result = command(
            runs, output=output, split=split, photo_seconds=photo_seconds, reporter=reporter
        )

    def show_page(tree: "Mapping[str, Any]") -> None:
        reporter.note(f"Report written to {tree['output']} ({format_bytes(tree['num_bytes'])})")

    show_result(reporter, result.to_json(), show_page)
