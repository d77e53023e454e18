"""Commands that use trained models, one or several together: evaluate, predict and export."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from finetune.bundle.model_card import find_bundle, read_class_names
from finetune.cli.render.output import build_console_reporter, print_json, print_text, show_result
from finetune.data.scan import check_path
from finetune.errors import ConfigError, RunFolderError
from finetune.evaluation.prior_file import check_prior
from finetune.inference.tta import describe_tta, parse_tta
from finetune.lookup import suggest_path
from finetune.types import Split, Tta
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_DEVICES = ("auto", "cpu", "cuda", "mps")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...",
        help="Run folder, bundle folder or checkpoint; several are exported as one model.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")]
TtaOption = Annotated[
    str,
    typer.Option(
        "--tta",
        metavar="VIEWS",
        help="Test-time augmentation, the views of each image to average over: hflip (image and "
        "flip), crops (five), crops10 (five and their flips), sizes (three) or none. --tta alone "
        "is hflip.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", min=1, help="Side of the input in pixels.  [as in training]"),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="WEIGHTS",
        help="Weights of several models: equal, or val to fit them on the validation images that "
        "all runs share.",
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        metavar="PRIOR",
        help="Target class prior: uniform, train, model or a file (.json, or .csv with the columns "
        "class,prior).  [from the model card]",
    ),
]


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
    _check_models(models, prior)
    if data is not None:
        check_path(data)
    views = parse_tta(tta)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.evaluate import evaluate as command

    result = command(
        models,
        data,
        split=parsed_split,
        device=_parse_device(device),
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
    if not models or _is_model(images):
        raise ConfigError(
            f"The images are missing: the last path, {images}, "
            f"{'is a model' if _is_model(images) else 'is the only one'}. Name one or more models, "
            f"and then a folder of images or an image file: finetune predict MODEL... IMAGES"
        )
    _check_models(models, prior)
    views = parse_tta(tta)
    reporter = build_console_reporter(json_output=as_json or output is None)
    from finetune.commands.predict import predict as command

    result = command(
        models,
        images,
        output=output,
        top_k=top_k,
        device=_parse_device(device),
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


def export(
    models: Models,
    output: Annotated[Path, typer.Option(help="Folder to create.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images for the parity check.  [validation images of the run]"),
    ] = None,
    weights: Weights = "equal",
    soup: Annotated[
        str | None,
        typer.Option(
            metavar="SOUP",
            help="Average the weights of runs that started from the same weights into one network: "
            "greedy (those that help on validation images) or uniform (all).",
        ),
    ] = None,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Export a model, or several as one, as a folder that finetune and timm can load."""
    _check_models(models, prior)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.export import export as command

    result = command(
        models, output, images=images, weights=weights, soup=soup, prior=prior, reporter=reporter
    )

    show_result(reporter, result.to_json(), lambda tree: _show_export(reporter, tree))


def _show_export(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    rows = {
        "model": tree["output"],
        "files": ", ".join(tree["files"]),
        "prior": tree["prior"]["target_prior"],
    }
    if (parity := tree["parity"]) is not None:
        is_multi_label = parity["num_same_labels"] is not None
        same = "labels at the thresholds" if is_multi_label else "top-1 class"
        num_same = parity["num_same_labels" if is_multi_label else "num_same_top1"]
        # a member may be one that timm cannot read
        reader = "the exported ensemble" if tree["members"] else "timm"
        rows["parity"] = (
            f"{reader} predicts the same {same} on {num_same} of "
            f"{format_count(parity['num_images'], 'image')}; probabilities differ by at most "
            f"{format_scientific(parity['max_abs_diff'])}"
        )
    reporter.print_pairs(rows)


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
    if not first or _is_model(last):
        return list(paths), None
    return first, last


def _is_model(path: Path) -> bool:
    """Return whether a path is a run folder, a bundle folder or a checkpoint."""
    if path.is_file():
        return path.suffix == ".ckpt"
    return find_bundle(path) is not None or (
        (path / "config.yaml").is_file() and (path / "manifest.csv").is_file()
    )


def _check_models(paths: Sequence[Path], prior: str | None) -> None:
    """Check that models exist, and the name or file of ``--prior``, before torch is imported."""
    for path in paths:
        _check_model_path(path)
        if len(paths) > 1 and path.is_dir() and not _is_model(path):
            raise RunFolderError(
                f"{path} is no run folder, bundle folder or .ckpt file. Of several paths, those of "
                f"models come first, and that of the images last."
            )
    if prior is not None:
        check_prior(prior, read_class_names(paths[0]))


def _check_model_path(path: Path) -> None:
    if not path.exists():
        raise RunFolderError(
            f"{path} does not exist.{suggest_path(path)} Give a run folder, a bundle folder or a "
            f".ckpt file."
        )


def _parse_split(name: str) -> Split:
    if name not in list(Split):
        raise ConfigError(f"--split {name}: unknown split. Choose one of {', '.join(Split)}.")
    return Split(name)


def _parse_device(name: str) -> str:
    if name not in _DEVICES:
        raise ConfigError(f"--device {name}: unknown device. Choose one of {', '.join(_DEVICES)}.")
    return name
