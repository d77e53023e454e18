"""Transform of the training images, and their sizes over the epochs."""

import numpy as np

from finetune.config.data import AugmentConfig
from finetune.config.resolved import ResolvedConfig
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.presets import create_train_transform
from finetune.data.transforms.rare_classes import RareClassTransform
from finetune.errors import ConfigError
from finetune.models.backbone import Network, accepts_image_size
from finetune.training.schedules.image_size import compute_image_size
from finetune.types import PreprocessSpec


def build_train_transform(
    config: ResolvedConfig, data: TrainingData, network: Network
) -> Transform:
    """Return the transform of the training images of a run, with their sizes over the epochs.

    Raises:
        ConfigError: The preset or pipeline does not exist or does not fit the image sizes, or the
            network does not accept one of these.
    """
    image_sizes = compute_train_image_sizes(
        config.data.train_image_size,
        network,
        backbone=config.model.backbone,
        num_epochs=config.trainer.epochs,
    )
    return build_augmentation(
        config.augment, data, network.spec, image_sizes=image_sizes, seed=config.seed
    )


def build_augmentation(
    augment: AugmentConfig,
    data: TrainingData,
    spec: PreprocessSpec,
    *,
    image_sizes: list[int],
    seed: int,
) -> Transform:
    """Return the transform of the training images.

    Args:
        augment: Section of the config.
        data: Images of the run.
        spec: Preprocessing of the network.
        image_sizes: Side of the images of each epoch, in pixels; empty for that of the network.
        seed: Seed of the random transforms.

    Raises:
        ConfigError: The preset or pipeline does not exist or does not fit the image sizes.
    """
    transform = create_train_transform(augment.name, spec=spec, seed=seed, sizes=image_sizes)
    if augment.rare_class_preset == "off":
        return transform
    rare_transform = create_train_transform(
        augment.rare_class_preset, spec=spec, seed=seed, sizes=image_sizes
    )
    rare_classes = find_rare_classes(augment, data)
    rare_labels = [label for label, name in enumerate(data.classes) if name in rare_classes]
    return RareClassTransform(
        transform, rare_transform, is_rare=np.isin(data.train.labels, rare_labels)
    )


def find_rare_classes(augment: AugmentConfig, data: TrainingData) -> tuple[str, ...]:
    """Return the classes that ``augment.rare_class_preset`` applies to; none if it is off."""
    if augment.rare_class_preset == "off":
        return ()
    limit = augment.rare_class_fraction * max(data.class_counts)
    pairs = zip(data.classes, data.class_counts, strict=True)
    return tuple(name for name, count in pairs if 0 < count < limit)


def compute_train_image_sizes(
    train_image_size: tuple[int, int], network: Network, *, backbone: str, num_epochs: int
) -> list[int]:
    """Return the side of the training images of each epoch; empty if all are those of the network.

    Args:
        train_image_size: Sides of the first and the last epoch, in pixels.
        network: Network of the run.
        backbone: Its name, for messages.
        num_epochs: Number of epochs of the run.

    Raises:
        ConfigError: The network does not accept one of the sizes.
    """
    first, last = train_image_size
    side = network.spec.input_size[-1]
    if first == last == side:
        return []
    sizes = [
        compute_image_size(epoch, num_epochs=num_epochs, first=first, last=last)
        for epoch in range(num_epochs)
    ]
    for size in sorted(set(sizes)):
        if not accepts_image_size(network, size):
            raise ConfigError(
                f"data.train_image_size={first},{last}: {backbone}, built for {side} pixels, does "
                f"not accept images of {size} pixels. Leave it out."
            )
    return sizes
