"""Views of an image by flips, turns and random crops, which features are extracted from."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from finetune.data.transforms.eval_transform import EvalTransform, RandomCropsTransform
from finetune.probe.features.views import ViewSpec

HFLIP, VFLIP, ROT90 = "hflip", "vflip", "rot90"

# Parts of the names of feature stores on disk, as those in ``probe.features.views``.
_CROP_TAG = "crop-of-{area:g}"
_STORE_TAGS = {HFLIP: "mirrored", VFLIP: "flipped-vertically", ROT90: "rotated-90"}


@dataclass(frozen=True, slots=True)
class AugmentedViewSpec(ViewSpec):
    """Views of an image by augmentations; the first is the evaluation view.

    Attributes:
        flips: Some of ``HFLIP``, ``VFLIP`` and ``ROT90``, each a view.
        crop_areas: Areas of random crops relative to the image, each a view.
    """

    flips: tuple[str, ...] = ()
    crop_areas: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Tags of the views in the names of feature stores, in the order of ``iter_views``."""
        flips = (_STORE_TAGS[name] for name in self.flips)
        crops = (_CROP_TAG.format(area=area) for area in self.crop_areas)
        return (*ViewSpec().names, *flips, *crops)

    @property
    def keys(self) -> tuple[str | float, ...]:
        """Name or area of each view but the first."""
        return (*self.flips, *self.crop_areas)

    def iter_views(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the views (B, H, W, C) of pixels (B, (1 + number of crops) * H, W, C)."""
        image, *crops = pixels.chunk(1 + len(self.crop_areas), dim=1)
        yield image
        for name in self.flips:
            yield _flip(image, name)
        yield from crops

    def build_transform(self, transform: EvalTransform) -> RandomCropsTransform:
        """Return the transform from an image to the pixels that ``iter_views`` takes."""
        return RandomCropsTransform(transform, self.crop_areas)


def _flip(images: Tensor, name: str) -> Tensor:
    """Return images (B, H, W, C) after a flip or a turn; only square images can be turned."""
    if name == ROT90:
        return images.rot90(1, (1, 2))
    return images.flip(2 if name == HFLIP else 1)
