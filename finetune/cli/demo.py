"""The ``demo`` command: digits of scikit-learn, or a transfer experiment on own images."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options.run_arguments import split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result
from finetune.errors import ConfigError
from finetune.system.garbage_collection import import_without_collection
from finetune.units import format_duration, format_percent

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_NUM_DIGITS = 5
_DEFAULT_SIZES = "10,30,100"
_DEFAULT_BACKBONE = "resnet10t"
_TRANSFER_OPTIONS = ("--transfer", "--backbone", "--images-per-class", "KEY=VALUE")


def demo(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="With --data: config keys of all runs, as for fit."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder or CSV for a transfer experiment.  [digits of scikit-learn]"),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE:TARGET",
            help="With --data: classes to train on first, and classes to transfer to, for example "
            "0-4:5-9 or cats,dogs:birds,fish.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help=f"With --data: network of all runs.  [{_DEFAULT_BACKBONE}]")
    ] = None,
    images_per_class: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="With --data: training images per class of the target; all images follow.  "
            f"[{_DEFAULT_SIZES}]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the data and runs; with --data, a stopped experiment continues "
            "there.  [runs/<date>-demo]"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
) -> None:
    """Compare fine-tuning with training from scratch, on digits or on own images."""
    with exit_on_stop_request():
        if data is not None:
            _run_transfer(
                settings or [], data, transfer, backbone, images_per_class, output, as_json=as_json
            )
            return
        given = (transfer, backbone, images_per_class, settings)
        for name, value in zip(_TRANSFER_OPTIONS, given, strict=True):
            if value:
                raise ConfigError(f"{name} needs --data FOLDER, the images of the experiment.")
        reporter = build_console_reporter(json_output=as_json)
        with import_without_collection():
            from finetune.commands.demo.demo import demo as command

        result = command(output, reporter=reporter)
        show_result(reporter, result.to_json(), lambda tree: _show_demo(reporter, tree))


def _show_demo(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    from finetune.commands.demo.demo import METHODS

    run_dir, folder = tree["run_dir"], tree["folder"]
    test_dir = Path(f"{folder}/data/digits-5-9/test")
    reporter.note("\nTest metrics on the digits 5 to 9 (same training images):")
    reporter.print_pairs(
        {
            f"  {name}": f"accuracy {format_percent(tree['metrics'][key]['accuracy'])}, "
            f"macro F1 {format_percent(tree['metrics'][key]['macro_f1'])}"
            for key, name in METHODS.items()
        }
    )
    _show_corrected_digits(reporter, tree["examples"], test_dir)
    reporter.note(f"\nPicture of test images with their predictions: {tree['picture']}")
    reporter.note(f"Run folder: {run_dir} (total {format_duration(tree['seconds'])})")
    reporter.print_commands(
        "Next:",
        [
            ["finetune", "evaluate", run_dir],
            ["finetune", "predict", run_dir, str(test_dir), "--output", "predictions.csv"],
            ["finetune", "fit", "YOUR_PHOTOS/"],
        ],
    )


def _show_corrected_digits(
    reporter: "ConsoleReporter", examples: Sequence[Mapping[str, Any]], test_dir: Path
) -> None:
    """Print some digits that only the fine-tuned network recognizes, on a console with Unicode."""
    corrected = [
        example
        for example in examples
        if example["predicted"]["finetuned"]
        == example["label"]
        != example["predicted"]["from_scratch"]
    ]
    by_class = {example["label"]: example for example in reversed(corrected)}
    shown = [by_class[label] for label in sorted(by_class)][:_NUM_DIGITS]
    if not shown or not reporter.console.encoding.startswith("utf"):
        return
    from finetune.cli.render.digit_text import draw_digits

    reporter.note("\nWrong from scratch, right after fine-tuning:")
    for line in draw_digits([test_dir / example["path"] for example in shown]):
        reporter.note(line.rstrip())
    captions = (f"{e['predicted']['from_scratch']} -> {e['label']}" for e in shown)
    reporter.note("".join(f"{caption:<16}" for caption in captions).rstrip())


def _run_transfer(
    settings: list[str],
    data: Path,
    transfer: str | None,
    backbone: str | None,
    images_per_class: str | None,
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    from finetune.commands.demo.class_ranges import split_transfer
    from finetune.config.load import build_config, parse_assignments
    from finetune.data.scan import check_path

    path, _ = split_args(settings)
    if path is not None:
        raise ConfigError(f"'{path}' is no KEY=VALUE. Pass the images as --data {path}.")
    if transfer is None:
        raise ConfigError(
            "--data needs --transfer SOURCE:TARGET, the classes of the two tasks, for example "
            "--transfer 0-4:5-9."
        )
    split_transfer(transfer)
    check_path(data)
    values = parse_assignments(settings)
    build_config({}, assignments=values)  # all errors at once, before torch is imported
    sizes = _parse_sizes(images_per_class or _DEFAULT_SIZES)
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    reporter = build_console_reporter(json_output=as_json)
    from finetune.cli.render.transfer_table import show_transfer
    from finetune.commands.demo.transfer import run_transfer
    from finetune.commands.demo.transfer_result import TransferSpec

    spec = TransferSpec(data, transfer, backbone or _DEFAULT_BACKBONE, sizes, values)
    result = run_transfer(spec, output or Path("runs") / f"{date}-transfer", reporter=reporter)
    show_result(reporter, result.to_json(), lambda tree: show_transfer(reporter, tree))


def _parse_sizes(text: str) -> tuple[int, ...]:
    """Return numbers of images per class in ascending order."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    invalid = [part for part in parts if not part.isdecimal() or int(part) < 4]
    if invalid or not parts:
        raise ConfigError(
            f"--images-per-class {text}: '{(invalid or [text])[0]}' is no number of images from 4 "
            f"on. Write numbers separated by commas, for example {_DEFAULT_SIZES}."
        )
    return tuple(sorted({int(part) for part in parts}))
