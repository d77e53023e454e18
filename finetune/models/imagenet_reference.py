"""What the classics were published with: errors on ImageNet, for a sense of scale."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageNetError:
    """Share of ImageNet's validation images that come out wrong, from one central crop, in percent.

    Attributes:
        top1: The most probable class is wrong.
        top5: None of the five most probable is right.
    """

    top1: float
    top5: float


IMAGENET_ERRORS: Mapping[str, ImageNetError] = {
    # He et al. 2016, https://arxiv.org/abs/1512.03385
    "resnet50": ImageNetError(24.6, 7.7),
    "resnet101": ImageNetError(23.4, 7.0),
    "resnet152": ImageNetError(23.0, 6.7),
    # Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556
    "vgg16": ImageNetError(28.5, 9.9),
    "vgg19": ImageNetError(28.7, 9.9),
    # Szegedy et al. 2015, https://arxiv.org/abs/1409.4842
    "googlenet": ImageNetError(34.2, 12.9),
    # Krizhevsky et al. 2012, https://doi.org/10.1145/3065386
    "alexnet": ImageNetError(42.6, 19.6),
}
"""Of the architectures as they were published; the weights of today may be better trained."""


def imagenet_error(backbone: str) -> ImageNetError | None:
    """Return the published errors of a classic, whatever the tag of its weights, or None."""
    return IMAGENET_ERRORS.get(backbone.partition(".")[0])
