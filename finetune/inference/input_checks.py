"""Checks of a model before it is applied to other views or sizes of images."""

from dataclasses import replace

import torch
from torch import nn

from finetune.bundle.bundle import ModelBundle
from finetune.data.transforms.view_stack import compute_sizes
from finetune.errors import ConfigError
from finetune.inference.tta import check_tta
from finetune.inference.whole_photos import check_photo_models, takes_photos
from finetune.models.classifier import eval_mode
from finetune.types import Tta

_MAX_FACTOR = 2
"""Factor to the size of training, up or down, from which on a size is far from it."""


def check_views(bundle: ModelBundle, tta: Tta) -> None:
    """Check that a model, or each member of an ensemble, allows a test-time augmentation.

    Raises:
        ConfigError: One was not trained on flipped images, or takes images of one size alone.
    """
    check_photo_models(bundle, tta)
    for member in bundle.members or (bundle,):
        check_tta(member.card, tta)
        sizes = compute_sizes(member.card.spec) if tta is Tta.SIZES else []
        for size in sizes:
            _check_size(member, size, option=f"--tta {tta}", remedy="Remove --tta.")


def resize_input(bundle: ModelBundle, image_size: int | None) -> ModelBundle:
    """Return a model, or an ensemble, that takes images of another size.

    The images are resized in proportion: interpolation and the cropped fraction stay.

    Args:
        bundle: Model.
        image_size: Height and width of the input in pixels; None for those of the model.

    Raises:
        ConfigError: The network does not accept the size.
    """
    if image_size is None:
        return bundle
    if takes_photos(bundle):
        raise ConfigError(
            f"--image-size {image_size} cannot apply to {bundle.source}, whose preprocessing is "
            f"part of the file. Remove --image-size, or export without --include-preprocessing."
        )
    for member in bundle.members or (bundle,):
        _check_size(
            member,
            (image_size, image_size),
            option=f"--image-size {image_size}",
            remedy="Remove --image-size, or train the model at this size.",
        )
    members = tuple(_replace_size(member, image_size) for member in bundle.members)
    return replace(_replace_size(bundle, image_size), members=members)


def describe_far_size(bundle: ModelBundle, image_size: int | None) -> str | None:
    """Return a note on images of a size far from that of the model; None where it is near.

    Args:
        bundle: Model as it was trained.
        image_size: Height and width of the input in pixels; None for those of the model.
    """
    own = bundle.card.spec.input_size[-1]
    if image_size is None or own / _MAX_FACTOR <= image_size <= own * _MAX_FACTOR:
        return None
    return (
        f"--image-size {image_size} is far from the {own} px that the model was trained with, and "
        f"predictions may be wrong. Measure them with labelled images: finetune evaluate "
        f"--image-size {image_size}"
    )


def _replace_size(bundle: ModelBundle, image_size: int) -> ModelBundle:
    spec = bundle.card.spec
    size = (spec.input_size[0], image_size, image_size)
    return replace(bundle, card=replace(bundle.card, spec=replace(spec, input_size=size)))


def _check_size(bundle: ModelBundle, size: tuple[int, int], *, option: str, remedy: str) -> None:
    """Check that a network accepts images of a height and width.

    Raises:
        ConfigError: It does not.
    """
    spec = bundle.card.spec
    if size == spec.input_size[1:] or _accepts(bundle.network, (spec.input_size[0], *size)):
        return
    own = spec.input_size[-1]
    raise ConfigError(
        f"{option} cannot apply to {bundle.card.backbone}: this network of {own} px does not "
        f"accept images of {size[1]} px. {remedy}"
    )


def _accepts(network: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Return whether a forward pass of an image of channels, height and width succeeds."""
    parameter = next(network.parameters(), None)  # that of another runtime has none
    device = None if parameter is None else parameter.device
    try:
        with torch.inference_mode(), eval_mode(network):
            network(torch.zeros(1, *input_size, device=device))
    except Exception:  # networks reject sizes with errors of any type
        return False
    return True
