"""The verb ``inspect``: its options, and the page that it shows."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.fit import FLAG_KEYS, build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result


def inspect(
    args: Annotated[
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
    with exit_on_stop_request():
        given = {"--backbone": backbone, "--weights": weights, "--output": output}
        _run_inspect(args, given, as_json=as_json)


def _run_inspect(args: list[str], options: Mapping[str, Any], *, as_json: bool) -> None:
    from finetune.cli.render.audit_summary import describe_audit
    from finetune.config.load import parse_assignments

    path, settings = split_args(args)
    flags = {
        FLAG_KEYS[flag]: (flag, str(value)) for flag, value in options.items() if value is not None
    }
    config = build_run_config(path, parse_assignments(settings), flags, None)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.inspect.inspect import inspect as command

    result = command(config, reporter=reporter)

    def show(tree: Mapping[str, Any]) -> None:
        for line in describe_audit(tree):
            reporter.note(line)
        reporter.note(f"written     {_describe_output(tree)}")

    show_result(reporter, result.to_json(), show)


def _describe_output(tree: Mapping[str, Any]) -> str:
    pictures = ", copies/*.jpg" if tree["copies"] else ""
    return f"{shlex.quote(tree['output'])}/: audit.json, audit.csv{pictures}"
