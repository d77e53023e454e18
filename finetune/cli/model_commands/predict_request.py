"""The command ``submit --verb predict``: the arguments of ``predict``, and the output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from finetune.cli.model_commands.predict import predict, separate_images
from finetune.cli.options.model_options import check_models, parse_device
from finetune.cli.options.shard_checks import check_shard_options
from finetune.cli.options.tta_command import TtaCommand
from finetune.cli.render.output import print_json
from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import parse_reject
from finetune.inference.tta import parse_tta
from finetune.lookup import suggest_name

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.commands.submit.batch_script import JobResources

_EXAMPLE = "finetune submit --verb predict MODEL IMAGES --shards predictions --array 8"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Arguments of ``predict`` that a job repeats, and the folder of the parts.

    Attributes:
        words: Arguments without ``--shards``.
        folder: Folder of the parts.
    """

    words: tuple[str, ...]
    folder: Path


def submit_predict(
    context: typer.Context,
    args: Sequence[str],
    resources: "JobResources",
    *,
    num_tasks: int,
    dry_run: bool,
    reporter: "ConsoleReporter",
) -> None:
    """Submit a prediction in parts, and print the job or, in a dry run, its script.

    Args:
        context: Context of the command ``submit``.
        args: Arguments that are not those of ``submit``.
        resources: Resources of each task.
        num_tasks: Number of tasks.
        dry_run: Whether to submit nothing.
        reporter: Receiver of what is printed.

    Raises:
        FinetuneError: Invalid arguments; the message names the remedy.
    """
    request = parse_predict_request(context, args)
    from finetune.commands.submit.submitted_prediction import submit_prediction

    result = submit_prediction(
        request.words, request.folder, resources, num_tasks=num_tasks, dry_run=dry_run
    )
    if reporter.json_output:
        print_json(result.to_json())
    elif dry_run:
        typer.echo(result.script_text, nl=False)
    else:
        _print_submission(reporter, result.to_json())


def parse_predict_request(context: typer.Context, args: Sequence[str]) -> PredictRequest:
    """Return the prediction that arguments describe, checked as far as possible without torch.

    Raises:
        FinetuneError: Invalid arguments; the message names the remedy.
    """
    options = _parse_options(context, args)
    if options["shards"] is None:
        raise ConfigError(
            f"A job writes its predictions in parts, which several tasks share and a restart "
            f"continues: add --shards FOLDER, as in {_EXAMPLE}"
        )
    others = ("output", "output_format", "embeddings", "saliency")
    check_shard_options({f"--{name.replace('_', '-')}": options[name] for name in others})
    lists = [Path(file) for file in options["lists"] or ()]
    models, inputs = separate_images([Path(path) for path in options["paths"]], lists)
    check_models(models, options["prior"])
    if any(str(path) == "-" for path in inputs):
        raise ConfigError(
            "- reads standard input, which a job does not have. Write the paths to a file, and "
            "name it with --list."
        )
    from finetune.data.layouts.table_options import TableOptions
    from finetune.data.streams.open_stream import open_stream

    column = options["column"]
    tables = TableOptions(is_strict=False) if column is None else TableOptions(image_column=column)
    open_stream(inputs, lists=lists, tables=tables)
    _check_settings(options, models)
    return PredictRequest(tuple(_omit_shards(args)), Path(options["shards"]))


def _check_settings(options: Mapping[str, Any], models: Sequence[Path]) -> None:
    """Check the settings that a task would refuse, as far as files tell without torch.

    Raises:
        ConfigError: A value is unknown, cannot apply to a model, or contradicts another one.
        RunFolderError: The folder of the parts has another content.
    """
    from finetune.commands.predict.predict_options import PredictOptions, check_stored_models
    from finetune.commands.predict.shards.part_manifest import check_folder

    settings = PredictOptions(
        options["top_k"], options["all_probabilities"], parse_device(options["device"]),
        options["batch_size"], parse_tta(options["tta"]), options["image_size"],
        options["weights"], options["temperature"], options["prior"], options["column"],
        parse_reject(options["reject"]),
    )  # fmt: skip
    check_stored_models(settings, models)
    folder = Path(options["shards"]).expanduser()
    check_folder(folder, settings.describe_model(), part_size=options["part_size"])


def _parse_options(context: typer.Context, args: Sequence[str]) -> Mapping[str, Any]:
    """Return the arguments parsed by the command line of ``predict``.

    Raises:
        ConfigError: An option is unknown to ``predict`` and ``submit``.
    """
    app = typer.Typer(add_completion=False)
    app.command(cls=TtaCommand)(predict)
    command = typer.main.get_command(app)
    known = {option for parameter in command.params for option in parameter.opts}
    own = {option for parameter in context.command.params for option in parameter.opts}
    for arg in args:
        option = arg.partition("=")[0]
        if option.startswith("--") and option not in known:
            raise ConfigError(
                f"No such option of submit or predict: {option}."
                f"{suggest_name(option, known | own)} See: finetune predict --help"
            )
    return command.make_context(context.command_path, list(args)).params


def _omit_shards(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments without ``--shards`` and its value."""
    remaining = iter(args)
    for arg in remaining:
        if arg == "--shards":
            next(remaining, None)
        elif not arg.startswith("--shards="):
            yield arg


def _print_submission(reporter: "ConsoleReporter", submission: Mapping[str, Any]) -> None:
    rows = {"job": "job_id", "predictions": "output", "script": "script", "log": "log"}
    reporter.print_pairs({name: str(submission[key]) for name, key in rows.items()})
    if submission["num_tasks"] > 1:
        reporter.note(
            f"{submission['num_tasks']} tasks share the images. What a stopped task leaves is "
            f"predicted when it is requeued, or when the script is submitted again."
        )
    reporter.print_commands(
        "Next:",
        [
            ["squeue", "--jobs", submission["job_id"]],
            ["tail", "-F", submission["log"].replace("%a", "1")],
        ],
    )
