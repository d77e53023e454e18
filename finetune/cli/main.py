"""The verbs. Each reads its options, calls one command, and shows the result."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.errors import INTERRUPTED_EXIT_CODE, ConfigError, FinetuneError
from finetune.types import Split

if TYPE_CHECKING:
    from finetune.cli.console import ConsoleReporter

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

_FLAG_KEYS = {
    "--backbone": "model.backbone",
    "--weights": "model.weights",
    "--epochs": "trainer.epochs",
    "--batch-size": "trainer.batch_size",
    "--lr": "optim.lr",
    "--image-size": "data.image_size",
    "--unfreeze": "unfreeze.name",
    "--imbalance": "imbalance.strategy",
    "--augment": "augment.name",
    "--precision": "trainer.precision",
    "--devices": "trainer.devices",
    "--num-nodes": "trainer.num_nodes",
    "--seed": "seed",
    "--wandb": "tracking.wandb",
    "--output": "output",
}


@app.command()
def fit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="A folder of class folders, or of train/val/test folders of them, or a CSV of "
            "path,label[,split][,group]; then any config keys (see: finetune config).",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of config keys.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm model, googlenet or alexnet.  [resnet50]")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="hub, random, a .pth or .safetensors file, a timm or run folder.  [hub]"),
    ] = None,
    epochs: Annotated[str | None, typer.Option(help="Passes over the images.  [auto]")] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Images a step over all processes.  [auto]")
    ] = None,
    lr: Annotated[str | None, typer.Option(help="Peak learning rate of the head.  [auto]")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the input in pixels.  [auto]")
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(help="all, linear_probe, head_first, gradual or milestones.  [auto]"),
    ] = None,
    imbalance: Annotated[
        str | None, typer.Option(help="none, weighted, sqrt or class_weights.  [none]")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, light, medium, strong, or a saved Albumentations file.  [auto]"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="Processes a machine.  [auto]")] = None,
    num_nodes: Annotated[str | None, typer.Option(help="Machines.  [1]")] = None,
    seed: Annotated[str | None, typer.Option(help="Of split, order and augmentation.  [0]")] = None,
    wandb: Annotated[
        str | None, typer.Option(help="Weights & Biases: off, offline or online.  [off]")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder.  [runs/<date>-<backbone>-<data>]")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a backbone on a folder of images."""
    given = (
        backbone, weights, epochs, batch_size, lr, image_size, unfreeze, imbalance, augment,
        precision, devices, num_nodes, seed, wandb, output,
    )  # fmt: skip
    values = dict(zip(_FLAG_KEYS, given, strict=True))
    flags = {_FLAG_KEYS[flag]: (flag, value) for flag, value in values.items() if value is not None}
    _fit(words or [], config, flags, resume, dry_run=dry_run, as_json=as_json)


def _fit(
    words: Sequence[str],
    file: Path | None,
    flags: dict[str, tuple[str, Any]],
    resume: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from finetune.config.load import (
        build_config,
        is_assignment,
        parse_assignments,
        read_config_file,
    )

    assignments = parse_assignments(word for word in words if is_assignment(word))
    paths = [word for word in words if not is_assignment(word)]
    if len(paths) > 1:
        raise ConfigError(f"Two data paths, {paths[0]} and {paths[1]}; keep one.")
    if paths:
        flags["data.path"] = ("DATA", paths[0])
    reporter = _reporter(json=as_json)
    if resume is not None:
        _refuse_with_resume(file, flags, dry_run=dry_run)
        if paths:
            flags["data.path"] = ("DATA", str(Path(paths[0]).resolve()))
    else:
        tree = {} if file is None else read_config_file(file)
        config = build_config(tree, assignments=assignments, flags=flags, file=str(file))
        _check_data_path(config.data.path)

    from finetune.commands import fit as command

    if resume is not None:
        result = command.resume(resume, assignments=assignments, flags=flags, reporter=reporter)
    elif dry_run:
        _show(reporter, {"plan": command.plan_fit(config, reporter=reporter)}, lambda _: None)
        return
    else:
        result = command.fit(config, reporter=reporter)
    _show(reporter, result.as_json(), lambda tree: _show_fit(reporter, tree))


def _refuse_with_resume(
    file: Path | None, flags: Mapping[str, tuple[str, Any]], *, dry_run: bool
) -> None:
    """Refuse options that a resumed run could only ignore."""
    if file is not None:
        raise ConfigError("--config cannot apply with --resume: the run has its own config.yaml.")
    if dry_run:
        raise ConfigError("--dry-run cannot apply with --resume; the plan is in the run folder.")
    if "output" in flags:
        raise ConfigError("--output cannot apply with --resume: the run stays in its folder.")


def _check_data_path(path: str | None) -> None:
    """Find a missing path before the heavy imports."""
    if path is None:
        raise ConfigError("No images: name a folder or a CSV, as in: finetune fit photos/")
    from finetune.data.scan import check_path

    check_path(Path(path).expanduser())


def _show_fit(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    run = tree["run_dir"]
    for split, metrics in tree["metrics"].items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        reporter.note(f"best on {split}: {shown}")
    reporter.pairs(
        {
            "run": f"{run}  ({tree['seconds']:.0f} s)",
            "next": f"finetune evaluate {run}",
            "": f"finetune predict {run} NEW_PHOTOS --output predictions.csv\n"
            f"finetune export {run} --output model/",
        }
    )


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
    as_json: Json = False,
) -> None:
    """Measure a model on labelled images."""
    reporter = _reporter(json=as_json)
    chosen = None if split is None else _split(split)
    from finetune.commands.evaluate import evaluate as command

    result = command(
        model,
        data,
        split=chosen,
        device=_device(device),
        batch_size=batch_size,
        reporter=reporter,
    )
    _show(reporter, result.as_json(), reporter.evaluation)


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
    as_json: Json = False,
) -> None:
    """Name the class of each image in a folder."""
    reporter = _reporter(json=as_json or output is None)
    from finetune.commands.predict import predict as command

    result = command(
        model,
        images,
        output=output,
        top_k=top_k,
        device=_device(device),
        batch_size=batch_size,
        reporter=reporter,
    )
    if as_json:
        _print_json(result.as_json())
    elif output is None:
        sys.stdout.write(result.as_csv())
    else:
        reporter.note(f"{len(result.predictions)} predictions in {output}")


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images to compare on; without, those that the run held out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ship a model as a folder that finetune and timm read."""
    reporter = _reporter(json=as_json)
    from finetune.commands.export import export as command

    result = command(model, output, images=images, reporter=reporter)

    def show(tree: Mapping[str, Any]) -> None:
        parity = tree["parity"]
        rows = {"model": str(output), "files": ", ".join(tree["files"])}
        if parity is not None:
            rows["checked"] = (
                f"timm alone gives the same top class on {parity['same_top_class']} of "
                f"{parity['num_images']} images; largest difference of a probability "
                f"{parity['max_difference']:.1e}"
            )
        reporter.pairs(rows)

    _show(reporter, result.as_json(), show)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for data and runs.  [runs/<date>-demo]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what fine-tuning gains, on handwritten digits; needs no download."""
    reporter = _reporter(json=as_json)
    from finetune.commands.demo import demo as command

    result = command(output, reporter=reporter)

    _show(reporter, result.as_json(), lambda tree: _show_demo(reporter, tree))


def _show_demo(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    run, folder = tree["run_dir"], tree["folder"]
    tuned, scratch = tree["metrics"]["finetuned"], tree["metrics"]["from_scratch"]
    reporter.note("\nOn test images of 5 to 9, after the same images and the same epochs:")
    reporter.pairs(
        {
            f"  {name}": f"accuracy {m['accuracy']:.3f}, macro F1 {m['macro_f1']:.3f}"
            for name, m in (("fine-tuned", tuned), ("from scratch", scratch))
        }
    )
    reporter.note("")
    reporter.pairs(
        {
            "run": f"{run}  (all of it: {tree['seconds']:.0f} s)",
            "try next": f"finetune evaluate {run}\n"
            f"finetune predict {run} {folder}/data/digits-5-9/test --output predictions.csv\n"
            f"finetune fit YOUR_PHOTOS/",
        }
    )


@app.command()
def config(as_json: Json = False) -> None:
    """Print every config key with its default, as commented YAML."""
    from finetune.config.load import commented_defaults
    from finetune.config.schema import Config

    if as_json:
        _print_json(Config().model_dump(mode="json"))
    else:
        sys.stdout.write(commented_defaults())


@app.command(name="join-run", hidden=True)
def join_run(run: Path) -> None:
    """Take part in a run as one of its further processes."""
    from finetune.commands.fit import join

    join(run)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(installed("finetune") + "\n")
        raise typer.Exit


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one message, no traceback."""
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.append(os.getcwd())  # noqa: PTH109 - for names like my_package.module:function
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="finetune", standalone_mode=False)
        if code == INTERRUPTED_EXIT_CODE:
            raise KeyboardInterrupt  # typer makes a number of it, and says nothing
    except KeyboardInterrupt:
        _reporter().error("stopped by Ctrl-C")
        return INTERRUPTED_EXIT_CODE
    except FinetuneError as error:
        _explain(_own_message(error))
        return error.exit_code
    except BrokenPipeError:
        # whoever read the output has seen enough; nothing is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _foreign_error(error, arguments)
    return code if isinstance(code, int) else 0


def _foreign_error(error: Exception, arguments: Sequence[str]) -> int:
    """Explain what typer, the disk or a defect of ours raised."""
    if hasattr(error, "format_message"):  # typer's own usage errors, wherever it keeps the class
        verb = next((f"{word} " for word in arguments if not word.startswith("-")), "")
        _reporter().error(f"{error.format_message()} See: finetune {verb}--help")
        return ConfigError.exit_code
    from finetune.storage import explain_disk_error

    explained = explain_disk_error(error, getattr(error, "filename", None) or "a file")
    if explained is not None:
        _explain(str(explained))
        return explained.exit_code
    _explain(
        f"unexpected {type(error).__name__}: {error}. This is a defect of finetune; please report "
        f"it with the output of FINETUNE_DEBUG=1 finetune …"
    )
    return 1


def _explain(message: str) -> None:
    if os.environ.get("FINETUNE_DEBUG"):
        import traceback

        traceback.print_exc()
    _reporter().error(message)


def _reporter(*, json: bool = False) -> "ConsoleReporter":
    """Return the console; rich is not imported for a mere --help."""
    from finetune.cli.console import ConsoleReporter

    return ConsoleReporter(json=json)


def _own_message(error: FinetuneError) -> str:
    """Return the message without the traceback that a reading process wraps it in."""
    text = str(error)
    if text.startswith("Caught ") and f"{type(error).__name__}: " in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def _show(
    reporter: "ConsoleReporter",
    tree: dict[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    if reporter.json:
        _print_json(tree)
    else:
        show(tree)


def _print_json(tree: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def _split(name: str) -> Split:
    if name not in list(Split):
        raise ConfigError(f"--split {name}: there are {', '.join(Split)}.")
    return Split(name)


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"--device {name}: there are auto, cpu, cuda, mps.")
    return name
