"""The verbs. Each reads its options, calls one command, and shows the result."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.bundle.model_card import read_class_names
from finetune.cli.compare import compare
from finetune.cli.fit import fit
from finetune.cli.inspect import inspect
from finetune.cli.render.output import (
    build_console_reporter,
    exit_on_stop_request,
    print_json,
    show_result,
)
from finetune.cli.submit import CONTEXT_SETTINGS, submit
from finetune.data.scan import check_path
from finetune.errors import ConfigError, RunFolderError
from finetune.evaluation.prior_file import check_prior
from finetune.lookup import suggest_name
from finetune.types import Split

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

app = typer.Typer(
    name="finetune",
    help="Fine-tune a pretrained image classifier on a folder of images, and use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run folder, a bundle folder or a checkpoint.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")]
Tta = Annotated[
    bool,
    typer.Option("--tta", help="Average over each image and its mirror image: twice the work."),
]

Prior = Annotated[
    str | None,
    typer.Option(
        metavar="PRIOR",
        help="Class shares that answers are for: uniform, train, model (as the network says), or a "
        ".json or .csv file of class,share.  [what the model's card says]",
    ),
]

app.command()(fit)
app.command()(inspect)
app.command()(compare)
app.command(context_settings=CONTEXT_SETTINGS)(submit)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled images; without, those that the run held out."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test.  [test, else val, else all]")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: Tta = False,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Measure a model on labelled images."""
    chosen = None if split is None else _parse_split(split)
    _check_model_path(model)
    _check_prior(prior, model)
    if data is not None:
        check_path(data)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.evaluate import evaluate as command

    result = command(
        model,
        data,
        split=chosen,
        device=_parse_device(device),
        batch_size=batch_size,
        tta=tta,
        prior=prior,
        reporter=reporter,
    )
    show_result(reporter, result.to_json(), reporter.show_evaluation)


@app.command()
def predict(
    model: Model,
    images: Annotated[Path, typer.Argument(help="A folder, searched to any depth, or an image.")],
    output: Annotated[
        Path | None, typer.Option(help="CSV to write; without, it goes to standard output.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes an image.")] = 1,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: Tta = False,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Name the class of each image in a folder."""
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
        sys.stdout.write(result.to_csv())
    views = ", each the mean over an image and its mirror image (--tta)" if tta else ""
    adjusted = prior is not None or result.prior["adjusted"]
    if output is not None or tta or adjusted:
        where = "" if output is None else f" in {output}"
        reporter.note(f"{len(result.predictions)} predictions{where}{views}")
    if adjusted:
        reporter.note(f"prior: {result.prior['target_prior']}")


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images to compare on; without, those that the run held out."),
    ] = None,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Ship a model as a folder that finetune and timm read."""
    _check_model_path(model)
    _check_prior(prior, model)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.export import export as command

    result = command(model, output, images=images, prior=prior, reporter=reporter)

    def show(tree: Mapping[str, Any]) -> None:
        parity = tree["parity"]
        rows = {"model": str(output), "files": ", ".join(tree["files"])}
        rows["prior"] = tree["prior"]["target_prior"]
        if parity is not None:
            rows["checked"] = (
                f"timm alone gives the same top class on {parity['same_top_class']} of "
                f"{parity['num_images']} images; largest difference of a probability "
                f"{parity['max_difference']:.1e}"
            )
        reporter.print_pairs(rows)

    show_result(reporter, result.to_json(), show)


@app.command()
def fetch(
    backbones: Annotated[
        list[str],
        typer.Argument(metavar="BACKBONE...", help="timm models, googlenet, alexnet."),
    ],
    as_json: Json = False,
) -> None:
    """Download weights of backbones, for machines without network."""
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.fetch import fetch as command

    show_result(reporter, command(backbones, reporter=reporter).to_json(), lambda _: None)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for data and runs.  [runs/<date>-demo]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what fine-tuning gains, on handwritten digits; needs no download."""
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.demo import demo as command

    result = command(output, reporter=reporter)

    show_result(reporter, result.to_json(), lambda tree: _show_demo(reporter, tree))


def _show_demo(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    run, folder = tree["run_dir"], tree["folder"]
    tuned, scratch = tree["metrics"]["finetuned"], tree["metrics"]["from_scratch"]
    reporter.note("\nOn test images of 5 to 9, after the same images and the same epochs:")
    reporter.print_pairs(
        {
            f"  {name}": f"accuracy {m['accuracy']:.3f}, macro F1 {m['macro_f1']:.3f}"
            for name, m in (("fine-tuned", tuned), ("from scratch", scratch))
        }
    )
    reporter.note(f"\nrun: {run}  (all of it: {tree['seconds']:.0f} s)")
    test = f"{folder}/data/digits-5-9/test"
    reporter.print_commands(
        "try next:",
        [
            ["finetune", "evaluate", run],
            ["finetune", "predict", run, test, "--output", "predictions.csv"],
            ["finetune", "fit", "YOUR_PHOTOS/"],
        ],
    )


@app.command()
def config(as_json: Json = False) -> None:
    """Print every config key with its default, as commented YAML."""
    from finetune.config.load import dump_commented_defaults
    from finetune.config.schema import Config

    if as_json:
        print_json(Config().model_dump(mode="json"))
    else:
        sys.stdout.write(dump_commented_defaults())


@app.command(name="join-run", hidden=True)
def join_run(run: Path) -> None:
    """Take part in a run as one of its further processes."""
    from finetune.commands.fit.fit import join

    with exit_on_stop_request():
        join(run)


@app.callback(invoke_without_command=True)
def _handle_version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(installed("finetune") + "\n")
        raise typer.Exit


def _parse_split(name: str) -> Split:
    if name not in list(Split):
        raise ConfigError(f"--split {name}: there are {', '.join(Split)}.")
    return Split(name)


def _parse_device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"--device {name}: there are auto, cpu, cuda, mps.")
    return name


def _check_model_path(path: Path) -> None:
    """Find a misspelt run before the heavy imports."""
    if not path.exists():
        hint = suggest_name(path.name, _list_siblings(path))
        raise RunFolderError(
            f"{path} does not exist.{hint if 'mean' in hint else ''} Name a run folder, a bundle "
            f"folder or a .ckpt file."
        )


def _check_prior(prior: str | None, model: Path) -> None:
    """Find a misspelt prior, and mistakes in a file of shares, before the heavy imports."""
    if prior is not None:
        check_prior(prior, read_class_names(model))


def _list_siblings(path: Path) -> list[str]:
    """Return what lies in the folder that a path should be in."""
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
