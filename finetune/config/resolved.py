"""Config of a run in which no rule is left to apply.

``builders.resolve`` makes it once from a ``Config``; everything after it reads plain numbers. It
has the keys of ``Config``, so that ``config.yaml`` of a run folder has one format.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from finetune.config.schema import CheckpointConfig, Config, ModelConfig, TrainerConfig
from finetune.config.section import Monitor
from finetune.config.sections.balance import ImbalanceConfig
from finetune.config.sections.data import DataConfig, ImageSize
from finetune.config.sections.learning import CalibrationConfig, ProbeConfig
from finetune.config.sections.objective import LossConfig
from finetune.config.sections.optim import LrScheduleConfig, OptimConfig
from finetune.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
OnOff = Literal["on", "off"]


class ResolvedDataConfig(DataConfig):
    """Images and how they are read.

    ``min_images_per_class`` applies before a run is built and stays as given; ``cache`` and
    ``cache_shorter_side`` are decided by ``builders.pixel_cache``, which needs the transform.
    """

    image_size: ImageSize
    train_image_size: tuple[ImageSize, ImageSize]
    num_workers: Annotated[int, Field(ge=0)]


class ResolvedModelConfig(ModelConfig):
    """Network and the source of its weights."""

    batch_norm: Literal["frozen", "train", "sync"]
    head_init: Literal["zero", "xavier", "he"]


class ResolvedProbeConfig(ProbeConfig):
    """Linear probe; ``hflip`` is decided by ``builders.probe_plan``, which needs the transform."""

    enabled: OnOff
    num_crops: Annotated[int, Field(ge=0, le=5)]
    last_stage_epochs: Annotated[int, Field(ge=0)]
    stages: OnOff


class ResolvedImbalanceConfig(ImbalanceConfig):
    """Treatment of imbalanced classes, with the parts of the strategy written out."""

    class_weights_start_fraction: Annotated[float, Field(ge=0, lt=1)]
    head_rebalancing: Literal["none", "crt", "tau_norm", "post_hoc"]
    post_hoc_strength: Annotated[float, Field(ge=0, le=1)] | Literal["held_out"]


class ResolvedOptimConfig(OptimConfig):
    """Optimizer and its learning rates; ``lr`` is "auto" until a run has measured it."""

    lr: Annotated[float, Field(gt=0, le=100)] | Literal["auto"]
    backbone_lr_scale: Annotated[float, Field(gt=0, le=10)]
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: OnOff
    swa_fraction: Annotated[float, Field(ge=0, le=1)]


class ResolvedLrScheduleConfig(LrScheduleConfig):
    """Schedule of the learning rates."""

    warmup_fraction: Annotated[float, Field(ge=0, le=0.5)]


class ResolvedLossConfig(LossConfig):
    """Loss function."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class ResolvedTrainerConfig(TrainerConfig):
    """Training loop and hardware."""

    epochs: Count
    batch_size: Count
    accumulate_grad_batches: Count
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    accelerator: Literal["cpu", "cuda", "mps"]
    devices: Count
    num_nodes: Count
    monitor: Monitor
    train_eval: OnOff


class ResolvedCheckpointConfig(CheckpointConfig):
    """Choice of the best epoch, and checkpoints within an epoch."""

    monitor: Literal["calibrated_loss"] | Monitor


class ResolvedCalibrationConfig(CalibrationConfig):
    """Calibration of the best model's probabilities."""

    enabled: OnOff


class ResolvedConfig(Config):
    """Config of a run with numbers in place of every "auto" that a builder reads."""

    data: ResolvedDataConfig
    model: ResolvedModelConfig
    probe: ResolvedProbeConfig
    imbalance: ResolvedImbalanceConfig
    optim: ResolvedOptimConfig
    lr_schedule: ResolvedLrScheduleConfig
    loss: ResolvedLossConfig
    trainer: ResolvedTrainerConfig
    checkpoint: ResolvedCheckpointConfig
    calibration: ResolvedCalibrationConfig

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the config as a resolved one.

        Raises:
            ConfigError: Keys are still "auto"; the message names them.
        """
        try:
            return cls.model_validate(config.model_dump())
        except ValidationError as error:
            keys = dict.fromkeys(".".join(map(str, e["loc"][:2])) for e in error.errors())
            raise ConfigError(
                f"The config leaves {', '.join(keys)} unresolved; an older release wrote it. Set "
                f"{'it' if len(keys) == 1 else 'them'} with KEY=VALUE."
            ) from error

    @property
    def is_probe_only(self) -> bool:
        """Whether the run ends with its linear probe."""
        return self.unfreeze.name == "linear_probe" and self.probe.enabled == "on"

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes."""
        return self.trainer.devices * self.trainer.num_nodes

    @property
    def num_micro_batches(self) -> int:
        """Number of micro-batches of a step, over all processes and accumulated batches."""
        return self.world_size * self.trainer.accumulate_grad_batches
