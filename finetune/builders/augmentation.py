"""What happens to training images, from names and numbers in the config."""

import numpy as np

from finetune.builders.image_sizes import compute_train_image_sizes
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.per_class import RareClassTransform
from finetune.data.transforms.presets import create_train_transform
from finetune.errors import ConfigError
from finetune.models.backbone import Network
from finetune.types import Split

_PRESETS_BY_STRENGTH = ("light", "medium", "strong")


def build_augmentation(config: Config, manifest: Manifest, network: Network) -> Transform:
    """Return the transform of training images.

    Args:
        config: Resolved.
        manifest: The images.
        network: The backbone.

    Raises:
        ConfigError: The preset or pipeline does not exist or cannot apply.
    """
    sizes = compute_train_image_sizes(config, network)
    names = (config.augment.name, config.augment.rare_class_preset)
    usual, *more = (
        create_train_transform(name, spec=network.spec, seed=config.seed, sizes=sizes)
        for name in names
        if name != "off"
    )
    if not more:
        return usual
    if names[0] not in _PRESETS_BY_STRENGTH or (
        _PRESETS_BY_STRENGTH.index(names[0]) >= _PRESETS_BY_STRENGTH.index(names[1])
    ):
        raise ConfigError(
            f"augment.rare_class_preset={names[1]} cannot apply to augment.name={names[0]}: it takes the place "
            f"of a weaker preset, of {', '.join(_PRESETS_BY_STRENGTH)}. Leave one of them out."
        )
    rare = find_rare_classes(config, manifest)
    if not rare:
        raise ConfigError(
            f"augment.rare_class_preset={names[1]} applies to no class: none has under "
            f"{config.augment.rare_class_fraction:.0%} of the training images of the largest. Leave it out, "
            f"or raise augment.rare_class_fraction."
        )
    is_rare = [sample.label in rare for sample in manifest.get_samples(Split.TRAIN)]
    return RareClassTransform(usual, more[0], is_rare=np.array(is_rare))


def find_rare_classes(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Return the classes that ``augment.rare_class_preset`` is for; none where it is off."""
    counts = manifest.count_per_class(Split.TRAIN)
    least = config.augment.rare_class_fraction * max(counts)
    pairs = zip(manifest.classes, counts, strict=True)
    found = tuple(name for name, count in pairs if 0 < count < least)
    return () if config.augment.rare_class_preset == "off" else found
