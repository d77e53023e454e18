"""Options of commands that use trained models, and checks of their paths before torch loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from finetune.bundle.model_card import find_bundle, read_class_names
from finetune.bundle.runtimes.model_paths import MODEL_KINDS, is_hub_name, is_other_model
from finetune.errors import ConfigError, RunFolderError
from finetune.evaluation.prior_file import check_prior
from finetune.lookup import explain_missing
from finetune.system.given_paths import exists, is_file

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
RejectOption = Annotated[
    str | None,
    typer.Option(
        "--reject",
        metavar="RULES",
        help="Reject answers by thresholds that validation images choose: precision=0.99 those of "
        "a low probability, false_rejections=0.05 images unlike the training images, or both with "
        "a comma between them. --reject alone is false_rejections=0.05.",
    ),
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


def is_model(path: Path) -> bool:
    """Return whether a path is a run folder, a bundle folder, a checkpoint or an exported model."""
    if is_file(path) and path.suffix.lower() == ".ckpt":
        return True
    return (
        find_bundle(path) is not None
        or all(is_file(path / name) for name in ("config.yaml", "manifest.csv"))
        or is_other_model(path)
    )


def check_models(
    paths: Sequence[Path], prior: str | None, *, kinds: str = MODEL_KINDS, has_images: bool = True
) -> None:
    """Check that models exist, and the name or file of ``--prior``, before torch is imported.

    Args:
        paths: Models.
        prior: Value of ``--prior``.
        kinds: Models that the command takes, for messages.
        has_images: Whether the last path of the command may be that of images.

    Raises:
        ConfigError: The prior is unknown.
        RunFolderError: A path is no model.
    """
    for path in paths:
        if not exists(path) and not is_hub_name(path):
            raise RunFolderError(explain_missing(path, f"Give {kinds}."))
        if len(paths) > 1 and path.is_dir() and not is_model(path):
            order = " Models come first, and the images last." if has_images else ""
            raise RunFolderError(f"{path} is no model. Give {kinds}.{order}")
    if prior is not None:
        check_prior(prior, read_class_names(paths[0]))


def parse_device(name: str) -> str:
    """Return the value of ``--device``.

    Raises:
        ConfigError: It is unknown.
    """
    if name not in _DEVICES:
        raise ConfigError(f"--device {name}: unknown device. Choose one of {', '.join(_DEVICES)}.")
    return name
