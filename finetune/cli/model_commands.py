"""Commands that apply trained models, one or several together: evaluate and predict."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from finetune.cli.options.model_options import (
    BatchSize,
    Device,
    ImageSize,
    Json,
    Prior,
    TtaOption,
    Weights,
    check_models,
    is_model,
    parse_device,
)
from finetune.cli.render.output import build_console_reporter, print_json, print_text, show_result
from finetune.data.scan import check_path
from finetune.errors import ConfigError
from finetune.inference.tta import describe_tta, parse_tta
from finetune.types import Split, Tta
from finetune.units import format_count


class TtaCommand(TyperCommand):
    """Command whose option ``--tta`` may be without a value, as in earlier releases."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse arguments with the value "hflip" for ``--tta`` alone."""
        return super().parse_args(ctx, list(_complete_tta(args)))


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
    as_json: Json = False,
) -> None:
    """Evaluate a model, or several models together, on labelled images."""
    parsed_split = None if split is None else _parse_split(split)
    models, data = _separate_data(paths)
    check_models(models, prior)
    if data is not None:
        check_path(data)
    views = parse_tta(tta)
    reporter = build_console_reporter(json_output=as_json)
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
        reporter=reporter,
    )
    show_result(reporter, result.to_json(), reporter.show_evaluation)


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL... IMAGES",
            help="Run folder, bundle folder or checkpoint; the probabilities of several models are "
            "averaged. Last, a folder of images (searched recursively) or an image file.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write.  [standard output]")
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Most probable classes listed per image.")
    ] = 1,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: TtaOption = "none",
    image_size: ImageSize = None,
    weights: Weights = "equal",
    prior: Prior = None,
    saliency: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write each image beside a map of what its class depends on, as PNG; only "
            "maps that are better than random ones.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the class of each image in a folder."""
    *models, images = paths
    if not models or is_model(images):
        raise ConfigError(
            f"The images are missing: the last path, {images}, "
            f"{'is a model' if is_model(images) else 'is the only one'}. Name one or more models, "
            f"and then a folder of images or an image file: finetune predict MODEL... IMAGES"
        )
    check_models(models, prior)
    views = parse_tta(tta)
    reporter = build_console_reporter(json_output=as_json or output is None)
    from finetune.commands.predict import predict as command

    result = command(
        models,
        images,
        output=output,
        top_k=top_k,
        device=parse_device(device),
        batch_size=batch_size,
        tta=views,
        image_size=image_size,
        weights=weights,
        prior=prior,
        saliency=saliency,
        reporter=reporter,
    )
    if as_json:
        print_json(result.to_json())
    elif output is None:
        print_text(result.to_csv())
    is_adjusted = prior is not None or result.prior["adjusted"]
    num_members = len(result.members)
    if output is not None or views is not Tta.NONE or num_members or is_adjusted:
        destination = "" if output is None else f" written to {output}"
        parts = [format_count(len(result.predictions), "prediction") + destination]
        parts += [f"mean of {format_count(num_members, 'model')}"] if num_members else []
        parts += [describe_tta(views)] if views is not Tta.NONE else []
        reporter.note("; ".join(parts))
    if result.saliency is not None:
        reporter.note(result.saliency.describe())
    if is_adjusted:
        reporter.note(f"Class prior: {result.prior['target_prior']}")


def _complete_tta(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with "hflip" where ``--tta`` has no value but a path or an option."""
    for number, arg in enumerate(args):
        if arg == "--":
            yield from args[number:]
            return
        following = args[number + 1] if number + 1 < len(args) else "-"
        is_value = following in list(Tta) or not (
            following.startswith("-") or Path(following).exists()
        )
        yield f"--tta={Tta.HFLIP}" if arg == "--tta" and not is_value else arg


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
