"""From the config to objects: the one place where both meet."""

from finetune.build.resolve import IMBALANCE
from finetune.build.training import Training, build_training, trainer_options, with_cache

__all__ = ["IMBALANCE", "Training", "build_training", "trainer_options", "with_cache"]
