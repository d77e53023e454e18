"""The command ``predict``: its options and its output."""

from pathlib import Path
from typing import Annotated

import typer

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
from finetune.cli.render.output import build_console_reporter, print_json, print_text
from finetune.errors import ConfigError
from finetune.inference.tta import describe_tta, parse_tta
from finetune.types import Tta
from finetune.units import format_count


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
    from finetune.commands.predict.predict import predict as command

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
