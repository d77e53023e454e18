"""Default search space: the settings that most often decide about the accuracy of fine-tuning."""

from collections.abc import Sequence
from typing import Any

from finetune.builders import Training
from finetune.commands.tune.space.search_space import SearchDimension
from finetune.config.auto import get_config_value
from finetune.config.load import get_explicit_values
from finetune.config.schema import Config
from finetune.config.sections.augment import PRESET_CROP_SCALES

_MAX_LAYER_DECAY = 1.0
_SMOOTHED_LOSSES = ("cross_entropy", "focal")


def build_default_space(training: Training, config: Config) -> list[SearchDimension]:
    """Return the default search space of a run, without the settings that the user has fixed.

    Ranges lie around the values that the run would take: rates and decays within a factor, so that
    a study of some twenty trials can cover them.

    Args:
        training: Objects of the run with the default settings.
        config: Config as given.
    """
    resolved = training.config
    fixed = {key for key, value in get_explicit_values(config).items() if value != "auto"}
    space = [_build_rate(training), *_build_layer_dimensions(training)]
    decay = resolved.optim.weight_decay
    space.append(_scale_range("optim.weight_decay", decay or 1e-4, 10))
    if resolved.loss.label_smoothing > 0 or resolved.loss.name in _SMOOTHED_LOSSES[:1]:
        space.append(SearchDimension("loss.label_smoothing", (), 0.0, 0.2))
    if resolved.augment.name in PRESET_CROP_SCALES:
        space.append(SearchDimension("augment.name", tuple(PRESET_CROP_SCALES)))
    space.append(SearchDimension("augment.mixup", (0.0, 0.2)))
    if resolved.model.drop_rate is None:
        space.append(SearchDimension("model.drop_rate", (None, 0.2, 0.5)))
    epochs = resolved.trainer.epochs
    choices = sorted({max(1, round(epochs / 2)), epochs, 2 * epochs})
    space.append(SearchDimension("trainer.epochs", tuple(choices)))
    return [dimension for dimension in space if _is_free(dimension.key, fixed)]


def find_default_value(training: Training, key: str) -> Any:
    """Return the value that a run without a search takes for a key; None where it is measured."""
    section, _, rest = key.partition(".")
    if not rest or "." not in rest:
        value = get_config_value(training.config, key)
        return None if value == "auto" else value
    # a parameter of a named component
    field, _, name = rest.partition(".")
    return getattr(getattr(training.config, section), field).get(name)


def _is_free(key: str, fixed: set[str]) -> bool:
    # a learning rate that is set is not measured
    aliases = {"optim.feature_change": {"optim.lr"}, "optim.lr": {"optim.feature_change"}}
    return not ({key, *aliases.get(key, set())} & fixed)


def _build_rate(training: Training) -> SearchDimension:
    """Return the range of the learning rate: as a factor where it is measured."""
    optim = training.config.optim
    if optim.lr == "auto":
        return _scale_range("optim.feature_change", optim.feature_change, 4)
    return _scale_range("optim.lr", optim.lr, 10)


def _build_layer_dimensions(training: Training) -> Sequence[SearchDimension]:
    """Return the ranges of the rates of deeper layers, which decide how far these move."""
    optim = training.config.optim
    if not training.facts.is_pretrained:
        return ()
    low = round(optim.layer_decay**2, 3)  # twice the decay per layer group
    dimensions = [SearchDimension("optim.backbone_lr_scale", (), 0.05, 1.0, is_log=True)]
    if low < _MAX_LAYER_DECAY:
        dimensions.append(SearchDimension("optim.layer_decay", (), low, _MAX_LAYER_DECAY))
    return dimensions


def _scale_range(key: str, center: float, factor: float) -> SearchDimension:
    low, high = (float(f"{value:.3g}") for value in (center / factor, center * factor))
    return SearchDimension(key, (), low, high, is_log=True)
