"""The config tree: every key, its default, its range and one line on what it does.

The sections on images and on learning stand in modules of their own.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.config.data import AugmentConfig, CacheConfig, DataConfig
from finetune.config.learning import (
    CalibrationConfig,
    ImbalanceConfig,
    LossConfig,
    LrScheduleConfig,
    OptimConfig,
    ProbeConfig,
    UnfreezeConfig,
)
from finetune.config.section import Auto, Section, coerce_on_off


class ModelConfig(Section):
    """The network and where its weights come from."""

    backbone: str = Field(
        "resnet50", min_length=1, description="any timm model name, googlenet or alexnet"
    )
    weights: str = Field(
        "hub",
        min_length=1,
        description="hub, random, or a local .pth, .safetensors, timm folder or run folder",
    )
    batch_norm: Literal["auto", "frozen", "train", "sync"] = Field(
        "auto",
        description="BatchNorm statistics of trained groups; auto: frozen in pretrained "
        "backbones, train with random weights; sync: over all GPUs",
    )
    grad_checkpointing: bool = Field(
        False,
        description="keep few activations and compute the rest again in the backward pass: less "
        "memory, more time",
    )
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout before the classifier; null: what the backbone has"
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model"
    )
    pretrained_cfg: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides of the preprocessing that the weights expect: mean, std, "
        "interpolation, crop_pct, crop_mode",
    )


class TrainerConfig(Section):
    """The loop, the machine and when to stop."""

    epochs: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="passes over the images; auto: by how many there are"
    )
    batch_size: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="images a step over all processes and accumulated batches; auto: 32, and "
        "64 or 128 for large sets",
    )
    accumulate_grad_batches: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="batches whose gradients make one step; auto: 1, and more where one batch does "
        "not fit into the memory",
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto", description="auto: bf16-mixed where the machine computes it fast, else 32-true"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU where there is one"
    )
    devices: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="processes a machine; auto: what the cluster job gives, else 1"
    )
    num_nodes: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="machines; auto: what the cluster job gives, else 1"
    )
    strategy: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="ddp: every process holds the network; fsdp: GPUs share its weights, gradients "
        "and optimizer between the steps",
    )
    collective_timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="how long a process waits for another one before all of them end",
    )
    gradient_clip_val: float = Field(1.0, ge=0, description="largest gradient norm; 0: no limit")
    monitor: Literal["auto", "accuracy", "balanced_accuracy", "macro_f1", "loss"] = Field(
        "auto",
        description="validation metric of the best epoch; auto: accuracy, and macro_f1 where one "
        "class has over twice the images of another",
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop after so many epochs without a better one; null: never"
    )
    compile: bool = Field(
        False,
        description="torch.compile: minutes first, then faster steps on a GPU; where it fails, a "
        "note says why and training goes on without",
    )
    deterministic: bool = Field(
        False, description="refuse GPU kernels whose result differs from run to run"
    )


class CheckpointConfig(Section):
    """When a run is saved, besides at the end of every epoch."""

    every_minutes: Annotated[float, Field(gt=0)] | None = Field(
        10.0,
        description="save in mid-epoch so often, for the case of a crash; null: never. What asks a "
        "run to stop (SIGTERM, SIGUSR1, SIGHUP, Ctrl-C) is answered with a checkpoint in any case",
    )


class TrackingConfig(Section):
    """Where the numbers go besides metrics.csv."""

    wandb: Annotated[
        Literal["off", "offline", "online"],
        BeforeValidator(coerce_on_off),
    ] = Field("off", description="Weights & Biases: off, offline or online")
    project: str = Field("finetune", min_length=1, description="W&B project")
    entity: str | None = Field(None, description="W&B user or team; null: your default")
    name: str | None = Field(None, description="W&B run name; null: the run folder's name")
    tags: list[str] = Field(default_factory=list, description="W&B tags")


class Config(Section):
    """Everything that a run depends on."""

    data: DataConfig = Field(default_factory=DataConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    unfreeze: UnfreezeConfig = Field(default_factory=UnfreezeConfig)
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    imbalance: ImbalanceConfig = Field(default_factory=ImbalanceConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    lr_schedule: LrScheduleConfig = Field(default_factory=LrScheduleConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    seed: int = Field(0, ge=0, lt=2**31, description="of the split, the order and the augmentation")
    resume: Literal["never", "auto"] = Field(
        "never", description="auto: go on with the run in output, if there is one"
    )
    output: str | None = Field(
        None, description="run folder; null: runs/<date>-<backbone>-<data folder>"
    )
