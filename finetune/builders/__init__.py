"""From the config to objects: the one place where both meet."""

from finetune.builders.augmentation import rare_classes
from finetune.builders.cost import bytes_to_train_all, describe_cost, measure, with_fitting_batch
from finetune.builders.criterion import class_weights_start, fitted_loss
from finetune.builders.imbalance_phases import last_parts
from finetune.builders.resolve import is_probe_only, num_processes
from finetune.builders.run import (
    Training,
    batch_in_memory,
    build_training,
    trainer_options,
    with_cache,
)
from finetune.builders.sampling import images_per_epoch

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
