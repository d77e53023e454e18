"""What cannot train on one image at a time: mixed pairs, and statistics of a batch."""

from collections.abc import Iterable

from finetune.builders.resolve import compute_world_size, require_int
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.classifier import ImageClassifier
from finetune.types import Phase


def check_micro_batch_size(
    config: Config, classifier: ImageClassifier, phases: Iterable[Phase], batch_size: int
) -> None:
    """Refuse one image at a time where it cannot stand alone.

    Args:
        config: Resolved.
        classifier: Trains.
        phases: How deep, in which epochs.
        batch_size: Global, as it will be.

    Raises:
        ConfigError: Says with which setting, and why.
    """
    shards = compute_world_size(config) * require_int(config.trainer.accumulate_grad_batches)
    against = _find_single_image_conflict(config, classifier, phases)
    if against and batch_size // shards < 2:
        setting, reason, remedy = against
        raise ConfigError(
            f"{setting} cannot apply to trainer.batch_size={batch_size} in {shards} parts: "
            f"{reason}. Take a larger batch or fewer parts{remedy}."
        )


def compute_min_micro_batch_size(
    config: Config, classifier: ImageClassifier, phases: Iterable[Phase]
) -> int:
    """Return how many images a process must hold at once: 1, or 2 where one cannot stand alone."""
    return 2 if _find_single_image_conflict(config, classifier, phases) else 1


def _find_single_image_conflict(
    config: Config, classifier: ImageClassifier, phases: Iterable[Phase]
) -> tuple[str, str, str] | None:
    """Return a setting that needs more than one image at a time, why, and what else helps."""
    for way in ("mixup", "cutmix"):
        if value := getattr(config.augment, way):
            return f"augment.{way}={value:g}", "one image has none to be mixed with", ""
    kind = config.model.batch_norm
    on_its_own = kind == "train" or (kind == "sync" and compute_world_size(config) == 1)
    deep = any(phase.depth > 1 for phase in phases)
    if on_its_own and deep and classifier.has_batch_norm:
        reason = "the statistics of one image are not those of a batch"
        return f"model.batch_norm={kind}", reason, ", or model.batch_norm=frozen"
    return None
