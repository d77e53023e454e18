"""Command-line application: each command parses its options, runs and prints its result."""

from pathlib import Path
from typing import Annotated

import typer

import finetune
from finetune.cli.compare import compare
from finetune.cli.demo import demo
from finetune.cli.export import export
from finetune.cli.fit import fit
from finetune.cli.inspect import inspect
from finetune.cli.model_commands.evaluate import evaluate
from finetune.cli.model_commands.predict import predict
from finetune.cli.model_commands.serve import serve
from finetune.cli.options.tta_command import TtaCommand
from finetune.cli.push import push
from finetune.cli.render.output import (
    build_console_reporter,
    exit_on_stop_request,
    print_json,
    print_text,
    show_result,
)
from finetune.cli.report import report
from finetune.cli.submit import CONTEXT_SETTINGS, submit
from finetune.cli.tune import tune
from finetune.system.garbage_collection import import_without_collection

app = typer.Typer(
    name="finetune",
    help="Fine-tune pretrained image classifiers on a folder of images, and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]

app.command()(fit)
app.command()(inspect)
app.command()(compare)
app.command()(tune)
app.command()(demo)
app.command(context_settings=CONTEXT_SETTINGS)(submit)
app.command(cls=TtaCommand)(evaluate)
app.command(cls=TtaCommand)(predict)
app.command()(export)
app.command()(push)
app.command()(report)
app.command(cls=TtaCommand)(serve)


@app.command()
def fetch(
    backbones: Annotated[
        list[str],
        typer.Argument(metavar="BACKBONE...", help="timm models, googlenet or alexnet."),
    ],
    as_json: Json = False,
) -> None:
    """Download pretrained weights, for nodes without network access."""
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.fetch import fetch as command

    show_result(reporter, command(backbones, reporter=reporter).to_json(), lambda _: None)


@app.command()
def config(as_json: Json = False) -> None:
    """Print all config keys with their defaults, as commented YAML."""
    from finetune.config.load import dump_commented_defaults
    from finetune.config.schema import Config

    if as_json:
        print_json(Config().model_dump(mode="json"))
    else:
        print_text(dump_commented_defaults())


@app.command(name="join-run", hidden=True)
def join_run(run: Path) -> None:
    """Join a run as an additional local process."""
    with import_without_collection():
        from finetune.commands.fit.fit import join

    with exit_on_stop_request():
        join(run)


@app.callback(invoke_without_command=True)
def _handle_version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print_text(f"{finetune.__version__}\n")
        raise typer.Exit
