"""The ``fit`` command: its options, and the config keys that they set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options.config_flags import collect_flags
from finetune.cli.options.option_checks import (
    check_layers,
    check_learning_check,
    check_lr_find,
    check_resume_options,
)
from finetune.cli.options.run_arguments import build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result
from finetune.distributed.launch import detect_launch, is_nonzero_rank
from finetune.errors import CHECK_FAILED_EXIT_CODE
from finetune.system.garbage_collection import import_without_collection
from finetune.types import Reporter

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.config.schema import Config


def fit(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="Folder of class folders, folder of train/val/test folders, CSV with the "
            "columns path,label[,split][,group], or Parquet. Then config keys (see: finetune "
            "config).",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of config keys.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm model, googlenet or alexnet.  [resnet50]")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="hub, random, a .pth or .safetensors file, a timm folder or a run folder.  [hub]"
        ),
    ] = None,
    epochs: Annotated[str | None, typer.Option(help="Number of epochs.  [auto]")] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Images per optimizer step, over all processes.  [auto]")
    ] = None,
    lr: Annotated[str | None, typer.Option(help="Peak learning rate of the head.  [auto]")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the input in pixels.  [auto]")
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            help="Freezing schedule: all, linear_probe, head_first, gradual or milestones.  [auto]"
        ),
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(
            help="Class imbalance strategy: none, weighted, logit_adjusted, crt, … "
            "(see: finetune config).  [auto]"
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Augmentation: none, light, medium, strong or a saved Albumentations file.  [auto]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Processes per node (auto: from torchrun/srun, else 1).  [auto]"),
    ] = None,
    num_nodes: Annotated[
        str | None,
        typer.Option(help="Number of nodes (auto: from torchrun/srun, else 1).  [auto]"),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="Seed of the split, image order and augmentation.  [0]")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(help="Weights & Biases: off, offline or online.  [off]")
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no report.html at the end.")
    ] = False,
    folds: Annotated[
        str | None,
        typer.Option(
            help="Cross-validation: number of folds; each image is held out once.  [none]"
        ),
    ] = None,
    final: Annotated[
        str | None,
        typer.Option(help="Model of the folds: ensemble, or refit on all images.  [ensemble]"),
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Train this fold only, as one of several jobs.  [all]")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder.  [runs/<date>-<backbone>-<data>]")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Run folder to resume; auto: resume the run in --output if there is one."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="With --dry-run: output size, parameters, multiply-adds and activations of each "
            "layer.",
        ),
    ] = False,
    lr_find: Annotated[
        bool,
        typer.Option(
            "--lr-find",
            help="Fit the probe, draw the loss over the learning rate and stop before the first "
            "epoch.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Overfit a small batch of 32 images within a minute, or say what hinders it (exit "
            "code 10).",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
) -> None:
    """Fine-tune a backbone on a folder of images."""
    flags = collect_flags(
        {
            "--backbone": backbone,
            "--weights": weights,
            "--epochs": epochs,
            "--batch-size": batch_size,
            "--lr": lr,
            "--image-size": image_size,
            "--unfreeze": unfreeze,
            "--imbalance": imbalance,
            "--augment": augment,
            "--precision": precision,
            "--devices": devices,
            "--num-nodes": num_nodes,
            "--seed": seed,
            "--wandb": wandb,
            "--no-report": no_report,
            "--folds": folds,
            "--final": final,
            "--fold": fold,
            "--output": output,
        }
    )
    with exit_on_stop_request():
        check_lr_find(lr_find=lr_find, resume=resume, dry_run=dry_run)
        check_learning_check(check=check, resume=resume, dry_run=dry_run, lr_find=lr_find)
        check_layers(layers=layers, dry_run=dry_run, has_folds=folds is not None)
        _run_fit(
            args or [],
            config,
            flags,
            resume,
            dry_run=dry_run,
            layers=layers,
            lr_find=lr_find,
            check=check,
            as_json=as_json,
        )


def _run_fit(
    args: Sequence[str],
    config_file: Path | None,
    flags: dict[str, tuple[str, Any]],
    resume: Path | None,
    *,
    dry_run: bool,
    layers: bool,
    lr_find: bool,
    check: bool,
    as_json: bool,
) -> None:
    from finetune.commands.early_checks.named_files import check_named_files
    from finetune.commands.fit.launch_check import check_launch
    from finetune.config.load import parse_assignments

    path, settings = split_args(args)
    assignments = parse_assignments(settings)
    reporter = build_console_reporter(json_output=as_json)
    run_reporter: Reporter = Reporter() if is_nonzero_rank() else reporter
    if resume == Path("auto"):
        flags["resume"] = ("--resume", "auto")
        resume = None
    if resume is not None:
        check_resume_options(config_file, flags)
        if path is not None:
            flags["data.path"] = ("DATA", str(Path(path).resolve()))
    else:
        config = build_run_config(path, assignments, flags, config_file)
        check_named_files(config)
        if not dry_run:
            # repeated by the command; here before torch is imported
            check_launch(config.trainer, detect_launch())

    if lr_find:
        _run_lr_find(config, reporter)
        return
    if check:
        _run_check(config, reporter)
        return
    with import_without_collection():
        from finetune.commands.fit import fit as command

    changes = {"assignments": assignments, "flags": flags}
    if dry_run:
        plan = (
            command.plan_fit(config, with_layers=layers, reporter=reporter)
            if resume is None
            else command.plan_resume(resume, **changes, with_layers=layers, reporter=reporter)
        )
        show_result(reporter, {"plan": plan}, lambda _: None)
        return
    if resume is not None:
        result = command.resume(resume, **changes, reporter=run_reporter)
    else:
        result = command.fit(config, reporter=run_reporter)
    if not is_nonzero_rank():
        from finetune.cli.render.fit_result import show_fit

        show_result(reporter, result.to_json(), lambda tree: show_fit(reporter, tree))


def _run_lr_find(config: "Config", reporter: "ConsoleReporter") -> None:
    from finetune.cli.render.lr_curve import show_lr_test

    with import_without_collection():
        from finetune.commands.fit.lr_find import find_learning_rate

    result = find_learning_rate(config, reporter=reporter)
    show_result(reporter, result.to_json(), lambda tree: show_lr_test(reporter, tree))


def _run_check(config: "Config", reporter: "ConsoleReporter") -> None:
    from finetune.cli.render.findings.check_lines import show_check

    with import_without_collection():
        from finetune.commands.fit.check.overfit_check import check_learning

    result = check_learning(config, reporter=reporter)
    show_result(reporter, result.to_json(), lambda tree: show_check(reporter, tree))
    if not result.is_passed:
        raise typer.Exit(CHECK_FAILED_EXIT_CODE)
