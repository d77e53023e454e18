"""Views of models whose files contain their preprocessing: whole photos, one at a time."""

from collections.abc import Sequence

import numpy as np

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.runtimes.photo_network import PhotoNetwork
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import get_whole_pixels
from finetune.data.transforms.eval_transform import FixedSizeTransform, View
from finetune.data.transforms.view_stack import ViewStack
from finetune.errors import ConfigError
from finetune.types import Draw, PreprocessSpec, Tta

_MAX_SIDE = 1 << 30


class WholePhotoTransform(FixedSizeTransform):
    """Transform that returns all pixels of a photo.

    Args:
        spec: Preprocessing in the file; a photo that cannot be read has its size.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, spec: PreprocessSpec) -> None:
        self.size = spec.input_size[1:]

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return the photo; ``draw`` is ignored."""
        # torch warns of arrays that cannot be written, as Pillow's are
        return View(np.require(get_whole_pixels(lazy_image), requirements="W"))


def takes_photos(bundle: ModelBundle) -> bool:
    """Return whether one of a bundle's networks takes whole photos."""
    return any(isinstance(m.network, PhotoNetwork) for m in bundle.members or (bundle,))


def build_photo_stack(models: Sequence[ModelBundle]) -> tuple[ViewStack, list[range]]:
    """Return the transform to whole photos, and which views belong to each model: the only one."""
    transform = WholePhotoTransform(models[0].card.spec)
    return ViewStack(transform, ((0, _MAX_SIDE, _MAX_SIDE),)), [range(1)] * len(models)


def check_photo_models(bundle: ModelBundle, tta: Tta) -> None:
    """Check that models that take photos are alone, and that nothing else prepares their images.

    Raises:
        ConfigError: They are not, or there is a test-time augmentation.
    """
    members = bundle.members or (bundle,)
    photo = next((m for m in members if isinstance(m.network, PhotoNetwork)), None)
    if photo is None:
        return
    if tta is not Tta.NONE:
        raise ConfigError(
            f"--tta {tta} cannot apply to {photo.source}, whose preprocessing is part of the file. "
            f"Remove --tta, or export without --include-preprocessing."
        )
    other = next((m for m in members if not isinstance(m.network, PhotoNetwork)), None)
    if other is not None:
        raise ConfigError(
            f"{photo.source} takes whole photos, as its preprocessing is part of the file, and "
            f"{other.source} prepares them itself. Combine models of one kind: export without "
            f"--include-preprocessing."
        )
