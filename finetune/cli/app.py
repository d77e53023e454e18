"""Command-line application: each command parses its options, runs and prints its result."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import finetune
from finetune.bundle.model_card import read_class_names
from finetune.cli.compare import compare
from finetune.cli.demo import demo
from finetune.cli.fit import fit
from finetune.cli.inspect import inspect
from finetune.cli.render.output import (
    build_console_reporter,
    exit_on_stop_request,
    print_json,
    print_text,
    show_result,
)
from finetune.cli.submit import CONTEXT_SETTINGS, submit
from finetune.cli.tune import tune
from finetune.data.scan import check_path
from finetune.errors import ConfigError, RunFolderError
from finetune.evaluation.prior_file import check_prior
from finetune.lookup import suggest_name
from finetune.types import Split
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

app = typer.Typer(
    name="finetune",
    help="Fine-tune pretrained image classifiers on a folder of images, and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEVICES = ("auto", "cpu", "cuda", "mps")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder, bundle folder or checkpoint.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Test-time augmentation: average over each image and its horizontal flip (twice the "
        "compute).",
    ),
]

Prior = Annotated[
    str | None,
    typer.Option(
        metavar="PRIOR",
        help="Target class prior: uniform, train, model or a file (.json, or .csv with the columns "
        "class,prior).  [from the model card]",
    ),
]

app.command()(fit)
app.command()(inspect)
app.command()(compare)
app.command()(tune)
app.command()(demo)
app.command(context_settings=CONTEXT_SETTINGS)(submit)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Labelled images.  [the held-out images of the run]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test.  [test, else val, else all images]")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: Tta = False,
    prior: Prior = None,
    splits: Annotated[
        str | None, typer.Option(help="Split folders as A=train,B=test, or none.  [as in the run]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on labelled images."""
    parsed_split = None if split is None else _parse_split(split)
    _check_model_path(model)
    _check_prior(prior, model)
    if data is not None:
        check_path(data)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.evaluate import evaluate as command

    result = command(
        model,
        data,
        split=parsed_split,
        device=_parse_device(device),
        batch_size=batch_size,
        tta=tta,
        prior=prior,
        splits=splits,
        reporter=reporter,
    )
    show_result(reporter, result.to_json(), reporter.show_evaluation)


@app.command()
def predict(
    model: Model,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder (searched recursively) or image file.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write.  [standard output]")
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Most probable classes listed per image.")
    ] = 1,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: Tta = False,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Predict the class of each image in a folder."""
    _check_model_path(model)
    _check_prior(prior, model)
    reporter = build_console_reporter(json_output=as_json or output is None)
    from finetune.commands.predict import predict as command

    result = command(
        model,
        images,
        output=output,
        top_k=top_k,
        device=_parse_device(device),
        batch_size=batch_size,
        tta=tta,
        prior=prior,
        reporter=reporter,
    )
    if as_json:
        print_json(result.to_json())
    elif output is None:
        print_text(result.to_csv())
    is_adjusted = prior is not None or result.prior["adjusted"]
    if output is not None or tta or is_adjusted:
        reporter.note(_describe_predictions(len(result.predictions), output, tta=tta))
    if is_adjusted:
        reporter.note(f"Class prior: {result.prior['target_prior']}")


def _describe_predictions(num_predictions: int, output: Path | None, *, tta: bool) -> str:
    destination = "" if output is None else f" written to {output}"
    views = "; averaged over each image and its horizontal flip (--tta)" if tta else ""
    return f"{format_count(num_predictions, 'prediction')}{destination}{views}"


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder to create.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images for the parity check.  [validation images of the run]"),
    ] = None,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Export a model as a folder that finetune and timm can load."""
    _check_model_path(model)
    _check_prior(prior, model)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.export import export as command

    result = command(model, output, images=images, prior=prior, reporter=reporter)

    show_result(reporter, result.to_json(), lambda tree: _show_export(reporter, tree))


def _show_export(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    rows = {
        "model": tree["output"],
        "files": ", ".join(tree["files"]),
        "prior": tree["prior"]["target_prior"],
    }
    if (parity := tree["parity"]) is not None:
        rows["parity"] = (
            f"timm predicts the same top-1 class on {parity['num_same_top1']} of "
            f"{format_count(parity['num_images'], 'image')}; probabilities differ by at most "
            f"{format_scientific(parity['max_abs_diff'])}"
        )
    reporter.print_pairs(rows)


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


def _parse_split(name: str) -> Split:
    if name not in list(Split):
        raise ConfigError(f"--split {name}: unknown split. Choose one of {', '.join(Split)}.")
    return Split(name)


def _parse_device(name: str) -> str:
    if name not in _DEVICES:
        raise ConfigError(f"--device {name}: unknown device. Choose one of {', '.join(_DEVICES)}.")
    return name


def _check_model_path(path: Path) -> None:
    """Check that a model path exists, before torch is imported."""
    if not path.exists():
        hint = suggest_name(path.name, _list_siblings(path))
        raise RunFolderError(
            f"{path} does not exist.{hint if 'mean' in hint else ''} Give a run folder, a bundle "
            f"folder or a .ckpt file."
        )


def _check_prior(prior: str | None, model: Path) -> None:
    """Check the name or file of ``--prior``, before torch is imported."""
    if prior is not None:
        check_prior(prior, read_class_names(model))


def _list_siblings(path: Path) -> list[str]:
    """Return the names in the parent folder of a path."""
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
