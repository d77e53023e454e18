"""Transform of the training images, and their sizes over the epochs."""

from collections.abc import Mapping, Sequence

import numpy as np

from finetune.config.facts import Choice
from finetune.config.resolved import ResolvedConfig
from finetune.config.sections.augment import GEOMETRY_KEYS, PRESET_CROP_SCALES, AugmentConfig
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.presets import Geometry, create_train_transform
from finetune.data.transforms.rare_classes import RareClassTransform
from finetune.errors import ConfigError
from finetune.models.backbone import Network, accepts_image_size
from finetune.probe.features.augmented_views import HFLIP
from finetune.probe.invariance import ViewEffect
from finetune.training.schedules.image_size import compute_image_size
from finetune.types import PreprocessSpec
from finetune.units import format_percent

CROP_SCALES = (0.35, 0.5, 0.65, 0.8)
"""Smallest areas of random crops to choose from, besides that of the preset and 1."""

MIN_HARDER_Z_SCORE, MIN_LOSS_CHANGE = 2.0, 0.05
"""Increase of held-out log loss from which flipped images are harder: in standard errors, and
relative to the loss."""

MAX_HELPFUL_Z_SCORE = -1.64
"""Change of held-out log loss in standard errors up to which turned images help heads that are also
fitted to them (one-sided 5%)."""

NEGLIGIBLE_LOSS_CHANGE = 0.005
"""Change of held-out log loss up to which flips and turns neither harm nor help, however certain
it is: heads that classify every image correctly differ by rounding."""

MIN_CROP_ACCURACY, MIN_CROP_Z_SCORE = 0.85, 2.0
"""Held-out accuracy on random crops, relative to whole images, below which they cut too much; and
the standard errors that the loss must exceed."""

_TURNED_IMAGES = {"vflip": "upside down", "rot90": "turned by 90 degrees"}


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

    def create(preset: str) -> Transform:
        geometry = _build_geometry(augment, preset)
        return create_train_transform(
            preset, spec=spec, seed=seed, sizes=image_sizes, geometry=geometry
        )

    if augment.rare_class_preset == "off":
        return create(augment.name)
    rare_classes = find_rare_classes(augment, data)
    rare_labels = [label for label, name in enumerate(data.classes) if name in rare_classes]
    return RareClassTransform(
        create(augment.name),
        create(augment.rare_class_preset),
        is_rare=np.isin(data.train.labels, rare_labels),
    )


def find_unmeasured_keys(config: ResolvedConfig) -> tuple[str, ...]:
    """Return the keys of ``augment`` that are "auto" until the run has measured them."""
    augment = config.augment
    if config.probe.enabled == "off" or augment.name not in PRESET_CROP_SCALES:
        return ()
    keys = tuple(key for key in GEOMETRY_KEYS if getattr(augment, key) == "auto")
    return tuple(key for key in keys if key == "hflip") if config.is_probe_only else keys


def choose_geometry(
    keys: Sequence[str],
    effects: Mapping[str | float, ViewEffect],
    *,
    crop_scale: float,
    is_multi_label: bool = False,
) -> dict[str, Choice]:
    """Return the choices for flips, turns and crops, by dotted key.

    Args:
        keys: Keys of ``augment`` to choose, of those of ``find_unmeasured_keys``.
        effects: Effect of each view that the keys need on heads fitted to unchanged images, by its
            name or area; of crops up to the first area that is accepted.
        crop_scale: Smallest area of random crops of the preset.
        is_multi_label: Whether the accuracy of the effects is the fraction of correct labels.
    """
    choices = {}
    metric = "fraction of correct labels" if is_multi_label else "accuracy"
    for key in keys:
        if key == "min_crop_scale":
            choice = _choose_crop_scale(effects, default=crop_scale, metric=metric)
        elif key == HFLIP:
            choice = _choose_hflip(effects[HFLIP])
        else:
            choice = _choose_turn(effects[key], _TURNED_IMAGES[key])
        choices[f"augment.{key}"] = choice
    return choices


def get_crop_scales(crop_scale: float) -> tuple[float, ...]:
    """Return the areas of random crops to choose from, from that of the preset upwards."""
    return (crop_scale, *(area for area in CROP_SCALES if area > crop_scale))


def is_crop_accepted(effect: ViewEffect) -> bool:
    """Return whether heads classify random crops of an area nearly as well as whole images."""
    is_kept = effect.view_accuracy >= MIN_CROP_ACCURACY * effect.accuracy
    return is_kept or effect.accuracy_z_score < MIN_CROP_Z_SCORE


def _choose_hflip(effect: ViewEffect) -> Choice:
    """Turn mirroring off where the log loss of mirrored images is clearly higher."""
    least = max(NEGLIGIBLE_LOSS_CHANGE, MIN_LOSS_CHANGE * effect.loss)
    limit = max(least, MIN_HARDER_Z_SCORE * effect.loss_error)
    is_harder = effect.loss_change >= least and effect.loss_z_score >= MIN_HARDER_Z_SCORE
    relation = "no less" if is_harder else "less"
    return Choice(
        "off" if is_harder else "on",
        f"mirroring changes the held-out log loss of heads ({effect.loss:.3f}) by "
        f"{effect.loss_change:+.4f}, {relation} than the {limit:+.4f} from which mirrored images "
        f"count as harder ({MIN_LOSS_CHANGE:.0%} of the loss and {MIN_HARDER_Z_SCORE:g} standard "
        f"errors)",
    )


def _choose_turn(effect: ViewEffect, view: str) -> Choice:
    """Turn a view on where heads fitted to it, too, have a clearly lower log loss."""
    limit = -max(NEGLIGIBLE_LOSS_CHANGE, -MAX_HELPFUL_Z_SCORE * effect.fitted_error)
    is_large = effect.fitted_change <= -NEGLIGIBLE_LOSS_CHANGE
    is_helpful = is_large and effect.fitted_z_score <= MAX_HELPFUL_Z_SCORE
    relation = "at least as low as" if is_helpful else "higher than"
    return Choice(
        "on" if is_helpful else "off",
        f"heads fitted to images {view}, too, change the held-out log loss of unchanged images "
        f"({effect.loss:.3f}) by {effect.fitted_change:+.4f}, {relation} the {limit:+.4f} from "
        f"which this helps ({NEGLIGIBLE_LOSS_CHANGE:g} and {-MAX_HELPFUL_Z_SCORE:g} standard "
        f"errors)",
    )


def _choose_crop_scale(
    effects: Mapping[str | float, ViewEffect], *, default: float, metric: str
) -> Choice:
    """Return the smallest area of crops on which heads keep their accuracy; 1 if there is none."""
    texts = []
    for area in get_crop_scales(default):
        effect = effects[area]
        accuracy = format_percent(effect.view_accuracy)
        texts.append(f"{accuracy} on crops of {format_percent(area, decimals=0)}")
        if is_crop_accepted(effect):
            break
    else:
        area = 1.0
    whole, limit = map(format_percent, (effect.accuracy, MIN_CROP_ACCURACY * effect.accuracy))
    return Choice(
        area,
        f"held-out {metric} of heads {whole} on whole images, {', '.join(texts)}; the smallest "
        f"crops are taken that keep {limit} ({MIN_CROP_ACCURACY:.0%} of it) or lose less than "
        f"{MIN_CROP_Z_SCORE:g} standard errors",
    )


def _build_geometry(augment: AugmentConfig, preset: str) -> Geometry:
    """Return flips, turns and crops of a preset; crops of its own unless they are restricted."""
    scale = augment.min_crop_scale
    is_default = scale in ("auto", PRESET_CROP_SCALES.get(augment.name))
    is_stronger = preset != augment.name
    return Geometry(
        hflip=augment.hflip != "off",
        vflip=augment.vflip == "on",
        rot90=augment.rot90 == "on",
        min_crop_scale=None if isinstance(scale, str) or (is_default and is_stronger) else scale,
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
