"""Published ImageNet error rates of classic architectures, as a reference in comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageNetErrorRates:
    """Error rates on the ImageNet validation set with a single centre crop, in percent.

    Attributes:
        top1: Images whose most probable class is wrong.
        top5: Images whose class is not among the five most probable ones.
    """

    top1: float
    top5: float


IMAGENET_ERROR_RATES: Mapping[str, ImageNetErrorRates] = {
    # He et al. 2016, https://arxiv.org/abs/1512.03385
    "resnet50": ImageNetErrorRates(24.6, 7.7),
    "resnet101": ImageNetErrorRates(23.4, 7.0),
    "resnet152": ImageNetErrorRates(23.0, 6.7),
    # Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556
    "vgg16": ImageNetErrorRates(28.5, 9.9),
    "vgg19": ImageNetErrorRates(28.7, 9.9),
    # Szegedy et al. 2015, https://arxiv.org/abs/1409.4842
    "googlenet": ImageNetErrorRates(34.2, 12.9),
    # Krizhevsky et al. 2012, https://doi.org/10.1145/3065386
    "alexnet": ImageNetErrorRates(42.6, 19.6),
}
"""Error rates as published; the weights of today may be trained better."""


def find_imagenet_error_rates(backbone: str) -> ImageNetErrorRates | None:
    """Return the published error rates of an architecture, whatever the weights' tag, or None."""
    return IMAGENET_ERROR_RATES.get(backbone.partition(".")[0])
