"""The ``submit`` command: options of the SLURM job, and the arguments of ``fit`` that it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.fit import fit
from finetune.cli.model_commands.predict_request import submit_predict
from finetune.cli.options.config_flags import FLAG_KEYS, SWITCHES, collect_flags
from finetune.cli.options.option_hints import suggest_for_option
from finetune.cli.options.run_arguments import build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, print_json
from finetune.errors import ConfigError
from finetune.lookup import suggest_name

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.config.schema import Config

CONTEXT_SETTINGS = {"ignore_unknown_options": True}
"""Registration settings: an option that is unknown to ``submit`` may be an option of ``fit``."""

_VERBS = ("fit", "predict")

_SCRIPT_KEYS = ("output", "resume", "data.path")
"""Config keys that the batch script sets itself."""


def submit(
    context: typer.Context,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA [FIT]...",
            help="Folder or CSV, and any options and KEY=VALUE of finetune fit; with --verb "
            "predict the arguments of finetune predict.",
        ),
    ] = None,
    verb: Annotated[
        str,
        typer.Option(metavar="VERB", help="fit, or predict with its own arguments."),
    ] = "fit",
    array: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tasks of a job array that share a prediction.  [1]"),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs per node; one process each.  [none]")
    ] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes per node without GPUs.  [1]")
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="CPU cores per process.  [cluster default]")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="SLURM partition.  [cluster default]")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Time limit, e.g. 4:00:00; the job is requeued and resumes."),
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="SLURM account to charge.  [cluster default]")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION", help="Further option of sbatch (repeatable), e.g. --sbatch=--mem=64G."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script without submitting it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
) -> None:
    """Submit a fit, or a prediction, to a SLURM cluster."""
    _check_verb(verb, array)
    request = None if verb == "predict" else _parse_fit_request(context, args or [])
    from finetune.commands.submit.batch_script import JobResources

    resources = JobResources(
        nodes, gpus_per_node, tasks_per_node, cpus_per_task, partition, time, account,
        tuple(sbatch or ()),
    )  # fmt: skip
    reporter = build_console_reporter(json_output=as_json)
    if request is None:
        submit_predict(
            context, args or [], resources, num_tasks=array or 1, dry_run=dry_run,
            reporter=reporter,
        )  # fmt: skip
        return
    from finetune.commands.submit.submit import submit as command

    result = command(request.config, request.fit_args, resources, dry_run=dry_run)
    if as_json:
        print_json(result.to_json())
    elif dry_run:
        if result.folds is not None:
            typer.echo(result.folds.script_text)
        typer.echo(result.script_text, nl=False)
    else:
        _print_submission(reporter, result.to_json(), request.config)


def _check_verb(verb: str, array: int | None) -> None:
    """Check the command that a job runs.

    Raises:
        ConfigError: It is unknown, or it has no job array of its own.
    """
    if verb not in _VERBS:
        raise ConfigError(f"--verb {verb}: unknown. Choose one of {', '.join(_VERBS)}.")
    if array is not None and verb == "fit":
        raise ConfigError(
            f"--array {array} cannot apply to a fit: its processes are those of --nodes and "
            f"--gpus-per-node, and folds are the tasks of --folds. Leave it out, or add "
            f"--verb predict."
        )


@dataclass(frozen=True, slots=True)
class _FitRequest:
    """The config of a fit, and the command-line arguments that reproduce it in the job."""

    config: "Config"
    fit_args: list[str]


def _parse_fit_request(context: typer.Context, args: Sequence[str]) -> _FitRequest:
    """Return the fit that the arguments describe, validated as far as possible without torch."""
    from finetune.config.load import parse_assignments

    options = _parse_fit_options(context, args)
    path, settings = split_args(options["args"] or [])
    flags = collect_flags(
        {flag: options[_get_parameter_name(flag)] for flag in (*FLAG_KEYS, *SWITCHES)}
    )
    file: Path | None = options["config"]
    config = build_run_config(path, parse_assignments(settings), flags, file)
    fit_args = [str(Path(str(config.data.path)).expanduser())]
    fit_args += [arg for arg in settings if arg.partition("=")[0] not in _SCRIPT_KEYS]
    fit_args += [] if file is None else ["--config", str(file)]
    for key, (flag, value) in flags.items():
        words = [flag] if flag in SWITCHES else [flag, value]
        fit_args += [] if key in _SCRIPT_KEYS else words
    return _FitRequest(config, fit_args)


def _get_parameter_name(flag: str) -> str:
    """Return the parameter of ``fit`` that holds the value of an option."""
    return flag.removeprefix("--").replace("-", "_")


def _parse_fit_options(context: typer.Context, args: Sequence[str]) -> Mapping[str, Any]:
    """Return the arguments parsed by the command line of ``fit``, by the names of its parameters.

    Raises:
        ConfigError: An option is unknown to ``fit`` and ``submit``, or cannot be used here.
    """
    fit_app = typer.Typer(add_completion=False)
    fit_app.command()(fit)
    command = typer.main.get_command(fit_app)
    fit_options = {option for parameter in command.params for option in parameter.opts}
    own_options = {option for parameter in context.command.params for option in parameter.opts}
    for arg in args:
        option = arg.partition("=")[0]
        if option.startswith("--") and option not in fit_options:
            hint = suggest_for_option(option, "submit", {}) or suggest_name(
                option, fit_options | own_options
            )
            raise ConfigError(
                f"No such option of submit or fit: {option}.{hint} See: finetune submit --help"
            )
    options = command.make_context(context.command_path, list(args)).params
    if options["resume"] not in (None, Path("auto")):
        raise ConfigError(
            f"--resume cannot be used with submit: a job resumes the run in --output if there is "
            f"one. Use: finetune submit DATA --output {options['resume']}"
        )
    if options["lr_find"]:
        raise ConfigError(
            "--lr-find cannot be used with submit: a job trains the run. Run "
            "finetune fit --lr-find in one process, then submit with the --lr that you choose."
        )
    if options["check"]:
        raise ConfigError(
            "--check cannot be used with submit: a job trains the run. Run finetune fit --check in "
            "one process, then submit."
        )
    return options


def _print_submission(
    reporter: "ConsoleReporter", submission: Mapping[str, Any], config: "Config"
) -> None:
    folds, job_id = submission["folds"], submission["job_id"]
    jobs, logs = [job_id], [submission["log"]]
    reporter.print_pairs({name: str(submission[key]) for name, key in _SUMMARY_ROWS.items()})
    if folds is not None:
        jobs, logs = [folds["job_id"], job_id], [folds["log"].replace("%a", "1"), *logs]
        rows = {f"{name} of folds": folds[key] for name, key in _FOLDS_ROWS.items()}
        reporter.print_pairs({name: str(value) for name, value in rows.items()})
        reporter.note(
            f"Job {folds['job_id']} trains a fold in each of its tasks; job {job_id} starts after "
            f"them, however they end, trains what they have left, and writes the model."
        )
    if config.model.weights == "hub":
        reporter.note(
            f"Compute nodes may have no network access. Download the weights before the job "
            f"starts: finetune fetch {config.model.backbone}"
        )
    reporter.print_commands(
        "Next:",
        [
            ["squeue", "--jobs", ",".join(jobs)],
            ["tail", "-F", *logs],
            ["scancel", "--signal=USR1", jobs[0]],
            *([] if folds is None else [["scancel", *jobs]]),
        ],
    )


_FOLDS_ROWS = {"job": "job_id", "script": "script", "log": "log"}
_SUMMARY_ROWS = {"job": "job_id", "run folder": "run_dir", "script": "script", "log": "log"}
