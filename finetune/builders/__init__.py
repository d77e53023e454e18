"""From the config to objects: the one place where both meet."""

from finetune.builders.augmentation import find_rare_classes
from finetune.builders.cost import (
    describe_cost,
    fit_batch_to_memory,
    measure_full_finetuning_bytes,
    measure_run_cost,
)
from finetune.builders.criterion import compute_class_weights_start_epoch, select_probe_loss
from finetune.builders.imbalance_phases import find_final_imbalance_phases
from finetune.builders.resolve import compute_world_size, is_probe_only
from finetune.builders.run import (
    Training,
    build_trainer_options,
    build_training,
    enable_cache,
    get_micro_batch_size,
)
from finetune.builders.sampling import compute_images_per_epoch

__all__ = [
    "Training",
    "get_micro_batch_size",
    "build_training",
    "measure_full_finetuning_bytes",
    "compute_class_weights_start_epoch",
    "describe_cost",
    "select_probe_loss",
    "compute_images_per_epoch",
    "is_probe_only",
    "find_final_imbalance_phases",
    "measure_run_cost",
    "compute_world_size",
    "find_rare_classes",
    "build_trainer_options",
    "enable_cache",
    "fit_batch_to_memory",
]
