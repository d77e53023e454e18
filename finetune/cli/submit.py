"""The verb ``submit``: what a job asks for, and the words of ``fit`` for what runs in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.fit import FLAG_KEYS, build_run_config, fit, split_args
from finetune.cli.render.output import build_console_reporter, print_json
from finetune.errors import ConfigError
from finetune.lookup import suggest_name

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.config.schema import Config

CONTEXT_SETTINGS = {"ignore_unknown_options": True}
"""For the registration: what ``submit`` does not know may be an option of ``fit``."""

_SCRIPT_KEYS = ("output", "resume", "data.path")
"""Keys that the batch script gives by itself."""


def submit(
    context: typer.Context,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA [FIT]...",
            help="The images, and any options and key=value of finetune fit.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a machine, each with a process.  [none]")
    ] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes of a machine without GPUs.  [1]")
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="Cores of a process.  [the cluster's]")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Queue.  [the cluster's]")] = None,
    time: Annotated[
        str | None, typer.Option(help="Limit, as 4:00:00; the run goes on in the queue.")
    ] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.  [yours]")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Another option of sbatch: --sbatch=--mem=64G."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script and submit nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Put a fit into the queue of a SLURM cluster."""
    asked = _parse_fit_request(context, args or [])
    from finetune.commands.submit.batch_script import JobResources
    from finetune.commands.submit.submit import submit as command

    resources = JobResources(
        nodes, gpus_per_node, tasks_per_node, cpus_per_task, partition, time, account,
        tuple(sbatch or ()),
    )  # fmt: skip
    result = command(asked.config, asked.fit_args, resources, dry_run=dry_run)
    reporter = build_console_reporter(json_output=as_json)
    if as_json:
        print_json(result.to_json())
    elif dry_run:
        typer.echo(result.text, nl=False)
    else:
        _print_submission(reporter, result.to_json(), asked.config)


@dataclass(frozen=True, slots=True)
class _FitRequest:
    """A fit in the form in which it is checked, and in that in which the job is told of it."""

    config: "Config"
    fit_args: list[str]


def _parse_fit_request(context: typer.Context, args: Sequence[str]) -> _FitRequest:
    """Return the fit that some words mean, checked as far as it can be without torch."""
    from finetune.config.load import parse_assignments

    given = _parse_fit_options(context, args)
    path, settings = split_args(given["words"] or [])
    flags = {
        key: (flag, given[flag[2:].replace("-", "_")])
        for flag, key in FLAG_KEYS.items()
        if given[flag[2:].replace("-", "_")] is not None
    }
    file: Path | None = given["config"]
    config = build_run_config(path, parse_assignments(settings), flags, file)
    own = [str(Path(str(config.data.path)).expanduser())]
    own += [word for word in settings if word.partition("=")[0] not in _SCRIPT_KEYS]
    own += [] if file is None else ["--config", str(file)]
    for key, (flag, value) in flags.items():
        own += [] if key in _SCRIPT_KEYS else [flag, value]
    return _FitRequest(config, own)


def _parse_fit_options(context: typer.Context, args: Sequence[str]) -> Mapping[str, Any]:
    """Return the words as ``fit`` reads them, by the names of its parameters.

    Raises:
        ConfigError: An option that is neither fit's nor submit's, or that cannot apply here.
    """
    alone = typer.Typer(add_completion=False)
    alone.command()(fit)
    command = typer.main.get_command(alone)
    names = {name for parameter in command.params for name in parameter.opts}
    own = {name for parameter in context.command.params for name in parameter.opts}
    for word in args:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in names:
            raise ConfigError(
                f"There is no option {name}, neither of submit nor of fit."
                f"{suggest_name(name, names | own)} See: finetune submit --help"
            )
    given = command.make_context(context.command_path, list(args)).params
    if given["resume"] not in (None, Path("auto")):
        raise ConfigError(
            f"--resume cannot apply: a job goes on with the run in --output if there is one, as "
            f"in: finetune submit DATA --output {given['resume']}"
        )
    return given


def _print_submission(
    reporter: "ConsoleReporter", submission: Mapping[str, Any], config: "Config"
) -> None:
    reporter.print_pairs({name: str(submission[key]) for name, key in _SUMMARY_ROWS.items()})
    if config.model.weights == "hub":
        reporter.note(
            f"Compute nodes may be without network; bring the weights here before the job starts: "
            f"finetune fetch {config.model.backbone}"
        )
    reporter.print_commands(
        "next:",
        [
            ["squeue", "--jobs", submission["job_id"]],
            ["tail", "-F", submission["log"]],
            ["scancel", "--signal=USR1", submission["job_id"]],
        ],
    )


_SUMMARY_ROWS = {"job": "job_id", "run": "run_dir", "script": "script", "log": "log"}
