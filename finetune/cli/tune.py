"""The ``tune`` command: its options, its plan and the tables that it prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options.config_flags import collect_flags
from finetune.cli.options.run_arguments import build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError
from finetune.system.garbage_collection import import_without_collection
from finetune.units import parse_duration

if TYPE_CHECKING:
    from finetune.commands.tune.space.search_space import SearchDimension


def tune(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="Folder or CSV, as for fit. Then config keys that all trials share.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of trials; the first has the default settings.  [20]"),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(help="Begin no trial that would not end within this time: 2h, 90min, 1h30m."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trials at the same time, each in a process.")] = 1,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="Config key to search instead of the default ones: KEY=LOW:HIGH, "
            "KEY=LOW:HIGH:log or KEY=A,B,C. Repeatable; 'default' adds the default ones.",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML file of config keys to search, as --search.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of config keys.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm model, googlenet or alexnet.  [resnet50]")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="As for fit.  [hub]")] = None,
    epochs: Annotated[
        str | None, typer.Option(help="Number of epochs of every trial.  [searched]")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the input in pixels.  [auto]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="Seed of the split, the draws and the trials.  [0]")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(help="Weights & Biases: off, offline or online.  [off]")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Folder of the study.  [runs/<date>-tune-<backbone>-<data>]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Study to continue; several processes may do so at the same time."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Search for better settings than the defaults, and report what they gain."""
    flags = collect_flags(
        {
            "--backbone": backbone,
            "--weights": weights,
            "--epochs": epochs,
            "--image-size": image_size,
            "--precision": precision,
            "--seed": seed,
            "--wandb": wandb,
            "--output": output,
        }
    )
    from finetune.commands.tune.preconditions import (
        check_counts,
        check_launch,
        check_optuna,
        check_unresumable,
        validate_search,
    )

    with exit_on_stop_request():
        check_optuna()
        check_launch(detect_launch())
        seconds = _parse_timeout(timeout)
        if resume is not None:
            own = [flag for flag, _ in flags.values()]
            own += [
                name
                for name, value in (("--search", search), ("--space", space), ("--config", config))
                if value
            ]
            own += ["--dry-run"] if dry_run else []
            check_unresumable([*own, *(args or [])], resume)
            _resume(resume, trials, seconds, jobs, worker, as_json=as_json)
            return
        check_counts(num_trials=20 if trials is None else trials, num_jobs=jobs)
        path, settings = split_args(args or [])
        if path is None and config is None:
            raise ConfigError(
                "No data path. Give a folder or a CSV file, for example: finetune tune photos/"
            )
        from finetune.commands.early_checks.named_files import check_named_files
        from finetune.config.load import parse_assignments

        run_config = build_run_config(path, parse_assignments(settings), flags, config)
        check_named_files(run_config)
        dimensions, extends = _read_space(search or [], space)
        validate_search(run_config, dimensions)
        _start(
            run_config,
            trials,
            seconds,
            jobs,
            tuple(dimensions),
            extends=extends,
            dry_run=dry_run,
            as_json=as_json,
        )


def _start(
    config: Any,
    trials: int | None,
    seconds: float | None,
    jobs: int,
    space: "tuple[SearchDimension, ...]",
    *,
    extends: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    reporter = build_console_reporter(json_output=as_json)
    from finetune.cli.render.tune_table import show_study_plan, show_tune_result

    with import_without_collection():
        from finetune.commands.tune.tune import TuneOptions, plan_tune
        from finetune.commands.tune.tune import tune as command

    options = TuneOptions(trials, seconds, jobs, space, extends)
    if dry_run:
        plan = plan_tune(config, options, reporter=reporter)
        show_result(reporter, plan.to_json(), lambda _: show_study_plan(reporter, plan))
        return
    result = command(
        config, options, reporter=reporter, on_plan=lambda plan: show_study_plan(reporter, plan)
    )
    show_result(reporter, result.to_json(), lambda tree: show_tune_result(reporter, tree))


def _resume(
    resume: Path,
    trials: int | None,
    seconds: float | None,
    jobs: int,
    worker: int | None,
    *,
    as_json: bool,
) -> None:
    reporter = build_console_reporter(json_output=as_json)
    from finetune.cli.render.tune_table import show_tune_result

    with import_without_collection():
        from finetune.commands.tune.tune import TuneOptions, resume_tune, run_worker

    options = TuneOptions(trials, seconds, jobs)
    if worker is not None:
        run_worker(resume, options, reporter=reporter)
        return
    result = resume_tune(resume, options, reporter=reporter)
    show_result(reporter, result.to_json(), lambda tree: show_tune_result(reporter, tree))


def _parse_timeout(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = parse_duration(text)
    if seconds is None or seconds <= 0:
        raise ConfigError(
            f"--timeout {text}: expected a duration with its unit, such as 45s, 90min, 2h or 1h30m."
        )
    return seconds


def _read_space(search: list[str], file: Path | None) -> "tuple[list[SearchDimension], bool]":
    from finetune.commands.tune.space.search_space import parse_search_options, read_space_file

    dimensions, extends = parse_search_options(search)
    if file is None:
        return dimensions, extends
    from_file = read_space_file(file)
    given = {dimension.key for dimension in dimensions}
    for dimension in from_file:
        if dimension.key in given:
            raise ConfigError(f"--search {dimension.key}: {file} has this key, too. Keep one.")
    return [*from_file, *dimensions], extends
