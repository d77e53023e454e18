"""The verb ``inspect``: its options, and the page that it shows."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.fit import FLAG_KEYS, config_of, sort_words
from finetune.cli.render.output import console_reporter, show_result, stop_as_exit


def inspect(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA [KEY=VALUE]...",
            help="A folder of class folders, or of train/val/test folders of them, or a CSV of "
            "path,label[,split][,group]; then any config keys.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="Ask this one for labels in doubt and copies that are cut.  [none]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="hub, a .pth or .safetensors file, a timm or run folder.  [hub]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write.  [runs/audit-<data>]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Look at all images before anything trains: counts, copies, leaks, damage."""
    with stop_as_exit():
        given = {"--backbone": backbone, "--weights": weights, "--output": output}
        _inspect(words, given, as_json=as_json)


def _inspect(words: list[str], given: Mapping[str, Any], *, as_json: bool) -> None:
    from finetune.cli.render.audit_summary import audit_lines
    from finetune.config.load import parse_assignments

    path, settings = sort_words(words)
    flags = {
        FLAG_KEYS[flag]: (flag, str(value)) for flag, value in given.items() if value is not None
    }
    config = config_of(path, parse_assignments(settings), flags, None)
    reporter = console_reporter(json=as_json)
    from finetune.commands.inspect.inspect import inspect as command

    result = command(config, reporter=reporter)

    def show(tree: Mapping[str, Any]) -> None:
        for line in audit_lines(tree):
            reporter.note(line)
        reporter.note(f"written     {_written(tree)}")

    show_result(reporter, result.as_json(), show)


def _written(tree: Mapping[str, Any]) -> str:
    pictures = ", copies/*.jpg" if tree["copies"] else ""
    return f"{shlex.quote(tree['output'])}/: audit.json, audit.csv{pictures}"
