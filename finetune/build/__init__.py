"""From the config to objects: the one place where both meet."""

from finetune.build.cost import bytes_to_train_all, describe_cost, measure, with_fitting_batch
from finetune.build.probe import is_probe_only
from finetune.build.resolve import IMBALANCE, num_processes
from finetune.build.training import (
    Training,
    batch_in_memory,
    build_training,
    trainer_options,
    with_cache,
)

__all__ = [
    "IMBALANCE",
    "Training",
    "batch_in_memory",
    "build_training",
    "bytes_to_train_all",
    "describe_cost",
    "is_probe_only",
    "measure",
    "num_processes",
    "trainer_options",
    "with_cache",
    "with_fitting_batch",
]
