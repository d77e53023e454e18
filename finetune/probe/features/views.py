"""Views of an image by its evaluation crop, a flip and fixed crops."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from finetune.data.transforms.eval_transform import EvalTransform, MultiCropTransform, Transform

# Tags of views are part of the names of feature stores on disk. Changing one makes the stores of
# earlier releases unreachable, so that their features are extracted again.
_EVAL_VIEW_TAG = "seen"
_FLIPPED_VIEW_TAG = "mirrored"
_CROP_TAG = "{fraction:g}-at-{across:g}-{down:g}"
_FLIPPED_CROP_TAG = f"{_CROP_TAG}-mirrored"


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """Views of an image that features are extracted from; the first is the evaluation view.

    Attributes:
        flipped: Whether the horizontally flipped image is a view, too.
        num_crops: Number of crops of the image; every other one is flipped if ``flipped``.
    """

    flipped: bool = False
    num_crops: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Tags of the views in the names of feature stores, in the order of ``iter_views``."""
        crops = (
            (_FLIPPED_CROP_TAG if self._is_flipped(index) else _CROP_TAG).format(
                fraction=MultiCropTransform.CROP_FRACTION, across=across, down=down
            )
            for index, (across, down) in enumerate(MultiCropTransform.ANCHORS[: self.num_crops])
        )
        return (_EVAL_VIEW_TAG, *((_FLIPPED_VIEW_TAG,) if self.flipped else ()), *crops)

    def build_transform(self, transform: EvalTransform) -> Transform:
        """Return the transform from an image to the pixels that ``iter_views`` takes."""
        return MultiCropTransform(transform, self.num_crops)

    def iter_views(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the views (B, H, W, C) of pixels (B, (1 + num_crops) * H, W, C)."""
        image, *crops = pixels.chunk(1 + self.num_crops, dim=1)
        yield image
        if self.flipped:
            yield image.flip(2)
        for index, crop in enumerate(crops):
            yield crop.flip(2) if self._is_flipped(index) else crop

    def _is_flipped(self, index: int) -> bool:
        return self.flipped and index % 2 == 1


@dataclass(frozen=True, slots=True)
class ViewSubset:
    """Some views of an image, in their order.

    Attributes:
        views: All views.
        indices: Indices of the views that features are extracted from, ascending.
    """

    views: ViewSpec
    indices: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Tags of the views in the names of feature stores."""
        return tuple(self.views.names[index] for index in self.indices)

    def build_transform(self, transform: EvalTransform) -> Transform:
        """Return the transform from an image to the pixels that ``iter_views`` takes."""
        return self.views.build_transform(transform)

    def iter_views(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the views (B, H, W, C) of the pixels of all views."""
        for index, view in enumerate(self.views.iter_views(pixels)):
            if index in self.indices:
                yield view
