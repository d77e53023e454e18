"""From the config to objects: the one place where both meet."""

from finetune.build.augment import rare_classes
from finetune.build.cost import bytes_to_train_all, describe_cost, measure, with_fitting_batch
from finetune.build.criterion import class_weights_start, fitted_loss
from finetune.build.last_part import last_parts
from finetune.build.resolve import is_probe_only, num_processes
from finetune.build.sampling import images_per_epoch
from finetune.build.training import (
    Training,
    batch_in_memory,
    build_training,
    trainer_options,
    with_cache,
)

__all__ = [
    "Training",
    "batch_in_memory",
    "build_training",
    "bytes_to_train_all",
    "class_weights_start",
    "describe_cost",
    "fitted_loss",
    "images_per_epoch",
    "is_probe_only",
    "last_parts",
    "measure",
    "num_processes",
    "rare_classes",
    "trainer_options",
    "with_cache",
    "with_fitting_batch",
]
