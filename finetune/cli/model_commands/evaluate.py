"""The command ``evaluate``: its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options.model_options import (
    BatchSize,
    Device,
    ImageSize,
    Json,
    Prior,
    RejectOption,
    TtaOption,
    Weights,
    check_models,
    is_model,
    parse_device,
)
from finetune.cli.render.output import build_console_reporter, show_result
from finetune.data.scan import check_path
from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import parse_reject
from finetune.inference.tta import parse_tta
from finetune.system.garbage_collection import import_without_collection
from finetune.types import Split


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL... [DATA]",
            help="Run folder, bundle folder or checkpoint; the probabilities of several models are "
            "averaged. Last, labelled images.  [the held-out images of the run]",
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="train, val or test.  [test, else val, else all images]")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: TtaOption = "none",
    image_size: ImageSize = None,
    weights: Weights = "equal",
    prior: Prior = None,
    splits: Annotated[
        str | None, typer.Option(help="Split folders as A=train,B=test, or none.  [as in the run]")
    ] = None,
    reject: RejectOption = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model, or several models together, on labelled images."""
    parsed_split = None if split is None else _parse_split(split)
    models, data = _separate_data(paths)
    check_models(models, prior)
    if data is not None:
        check_path(data)
    views, rules = parse_tta(tta), parse_reject(reject)
    reporter = build_console_reporter(json_output=as_json)
    with import_without_collection():
        from finetune.commands.evaluate import evaluate as command

    result = command(
        models,
        data,
        split=parsed_split,
        device=parse_device(device),
        batch_size=batch_size,
        tta=views,
        image_size=image_size,
        weights=weights,
        prior=prior,
        splits=splits,
        reject=rules,
        reporter=reporter,
    )
    show_result(reporter, result.to_json(), reporter.show_evaluation)


def _separate_data(paths: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Return the models, and the last path if it names images and no model."""
    *first, last = paths
    if not first or is_model(last):
        return list(paths), None
    return first, last


def _parse_split(name: str) -> Split:
    if name not in list(Split):
        raise ConfigError(f"--split {name}: unknown split. Choose one of {', '.join(Split)}.")
    return Split(name)
