"""Builders: the one layer that turns config sections into objects."""

from finetune.builders.augmentation import (
    choose_geometry,
    find_unmeasured_keys,
    get_crop_scales,
    is_crop_accepted,
)
from finetune.builders.cost import (
    describe_cost,
    fit_batch_to_memory,
    measure_full_finetuning_bytes,
    measure_run_cost,
)
from finetune.builders.criterion import select_probe_loss
from finetune.builders.layer_report import describe_layers
from finetune.builders.model_prior import find_final_imbalance_phases
from finetune.builders.run import (
    Training,
    build_training,
    enable_cache,
    get_micro_batch_size,
    update_training,
)
from finetune.builders.sampling import compute_images_per_epoch
from finetune.builders.schedules import build_trainer_options

__all__ = [
    "Training",
    "build_trainer_options",
    "build_training",
    "choose_geometry",
    "compute_images_per_epoch",
    "describe_cost",
    "describe_layers",
    "enable_cache",
    "find_final_imbalance_phases",
    "find_unmeasured_keys",
    "fit_batch_to_memory",
    "get_crop_scales",
    "get_micro_batch_size",
    "is_crop_accepted",
    "measure_full_finetuning_bytes",
    "measure_run_cost",
    "select_probe_loss",
    "update_training",
]
