"""The verb ``fit``: its options, and what they are in the config tree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result
from finetune.distributed.launch import detect_launch, is_nonzero_rank
from finetune.errors import ConfigError
from finetune.types import Reporter

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.config.schema import Config

FLAG_KEYS = {
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


def fit(
    args: Annotated[
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
        str | None, typer.Option(help="none, weighted, logit_adjusted, crt … (see README).  [auto]")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, light, medium, strong, or a saved Albumentations file.  [auto]"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Processes a machine; a launcher's are taken as they are.  [auto]"),
    ] = None,
    num_nodes: Annotated[
        str | None,
        typer.Option(help="Machines; srun's or torchrun's are taken as they are.  [auto]"),
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Of split, order and augmentation.  [0]")] = None,
    wandb: Annotated[
        str | None, typer.Option(help="Weights & Biases: off, offline or online.  [off]")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder.  [runs/<date>-<backbone>-<data>]")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with this run folder; auto: with the one that --output names."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Fine-tune a backbone on a folder of images."""
    given = (
        backbone, weights, epochs, batch_size, lr, image_size, unfreeze, imbalance, augment,
        precision, devices, num_nodes, seed, wandb, output,
    )  # fmt: skip
    values = dict(zip(FLAG_KEYS, given, strict=True))
    flags = {FLAG_KEYS[flag]: (flag, value) for flag, value in values.items() if value is not None}
    with exit_on_stop_request():
        _run_fit(args or [], config, flags, resume, dry_run=dry_run, as_json=as_json)


def _run_fit(
    args: Sequence[str],
    config_file: Path | None,
    flags: dict[str, tuple[str, Any]],
    resume: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from finetune.commands.fit.launch_check import check_launch
    from finetune.config.load import parse_assignments

    path, settings = split_args(args)
    assignments = parse_assignments(settings)
    reporter = build_console_reporter(json_output=as_json)
    watcher: Reporter = Reporter() if is_nonzero_rank() else reporter
    if resume == Path("auto"):
        flags["resume"] = ("--resume", "auto")
        resume = None
    if resume is not None:
        _check_resume_options(config_file, flags)
        if path is not None:
            flags["data.path"] = ("DATA", str(Path(path).resolve()))
    else:
        config = build_run_config(path, assignments, flags, config_file)
        if not dry_run:
            check_launch(config, detect_launch())  # again later; here nobody has waited for torch

    from finetune.commands.fit import fit as command

    changes = {"assignments": assignments, "flags": flags}
    if dry_run:
        plan = (
            command.plan_fit(config, reporter=reporter)
            if resume is None
            else command.plan_resume(resume, **changes, reporter=reporter)
        )
        show_result(reporter, {"plan": plan}, lambda _: None)
        return
    if resume is not None:
        result = command.resume(resume, **changes, reporter=watcher)
    else:
        result = command.fit(config, reporter=watcher)
    if not is_nonzero_rank():
        show_result(reporter, result.to_json(), lambda tree: _show_fit(reporter, tree))


def _check_resume_options(config_file: Path | None, flags: Mapping[str, tuple[str, Any]]) -> None:
    """Refuse options that a resumed run could only ignore."""
    if config_file is not None:
        raise ConfigError("--config cannot apply with --resume: the run has its own config.yaml.")
    if "output" in flags:
        raise ConfigError("--output cannot apply with --resume: the run stays in its folder.")


def split_args(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the path of the images among the words of ``fit``, and the assignments.

    Raises:
        ConfigError: There are two paths.
    """
    from finetune.config.load import is_assignment

    paths = [word for word in args if not is_assignment(word)]
    if len(paths) > 1:
        raise ConfigError(f"Two data paths, {paths[0]} and {paths[1]}; keep one.")
    return (paths[0] if paths else None), [word for word in args if is_assignment(word)]


def build_run_config(
    data_path: str | None,
    assignments: Mapping[str, Any],
    flags: Mapping[str, tuple[str, Any]],
    config_file: Path | None,
) -> "Config":
    """Return the config of a new run; what can be wrong with it is found before the heavy imports.

    Raises:
        ConfigError: All mistakes at once, no images are named, or two settings contradict each
            other.
        DataError: The images do not exist.
    """
    from finetune.config.imbalance import check_imbalance
    from finetune.config.load import build_config, read_config_file
    from finetune.data.scan import check_path

    tree = {} if config_file is None else read_config_file(config_file)
    if data_path is not None:
        flags = {**flags, "data.path": ("DATA", data_path)}
    config = build_config(tree, assignments=assignments, flags=flags, source_name=str(config_file))
    if config.data.path is None:
        raise ConfigError("No images: name a folder or a CSV, as in: finetune fit photos/")
    check_path(Path(config.data.path).expanduser())
    check_imbalance(config)
    return config


def _show_fit(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    run = tree["run_dir"]
    for split, metrics in tree["metrics"].items():
        details = tree["evaluations"].get(split)
        if details is None:  # the run of an older finetune, finished by then
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            reporter.note(f"best model on {split}: {shown}")
            continue
        reporter.note(f"best model on {split.replace('_', ' ')}:")
        found = {"split": None, "tta": False, "metrics": metrics, **details}
        whole = [name for name in tree["metrics"] if not name.endswith("without_leaks")]
        reporter.show_evaluation(found, show_classes=split == whole[-1])
    if tree["calibration"] is not None:
        reporter.show_calibration(tree["calibration"])
    reporter.note(f"run: {run}  ({tree['seconds']:.0f} s)")
    reporter.print_commands(
        "next:",
        [
            ["finetune", "evaluate", run],
            ["finetune", "predict", run, "NEW_PHOTOS", "--output", "predictions.csv"],
            ["finetune", "export", run, "--output", "model/"],
        ],
    )
