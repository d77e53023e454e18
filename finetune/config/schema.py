"""Config of a run: every key with its default, its range and a description.

``data`` and ``learning`` have the sections on images and on learning.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.config.section import Auto, Monitor, Section, Switch
from finetune.config.sections.augment import AugmentConfig
from finetune.config.sections.balance import ImbalanceConfig
from finetune.config.sections.data import CacheConfig, DataConfig
from finetune.config.sections.folds import CrossValidationConfig
from finetune.config.sections.head_options import (
    ACTIVATION_NAMES,
    MlpOptions,
    parse_mlp_options,
)
from finetune.config.sections.learning import CalibrationConfig, ProbeConfig, UnfreezeConfig
from finetune.config.sections.objective import LossConfig
from finetune.config.sections.optim import LrScheduleConfig, OptimConfig
from finetune.config.sections.records.rejection_section import RejectionConfig
from finetune.config.sections.records.report_page import ReportConfig
from finetune.config.sections.tracking import TrackingConfig
from finetune.lookup import is_import_path


class ModelConfig(Section):
    """Network and the source of its weights."""

    backbone: str = Field(
        "resnet50",
        min_length=1,
        description="any timm model name, googlenet or alexnet, or a network of your own as "
        "package.module:function",
    )
    weights: str = Field(
        "hub",
        min_length=1,
        description="hub, random, or a local .pth, .safetensors, timm folder or run folder; a "
        "network of your own has random weights by default",
    )
    batch_norm: Literal["auto", "frozen", "train", "sync"] = Field(
        "auto",
        description="BatchNorm statistics of trainable groups: frozen, updated (train) or "
        "synchronized over all GPUs (sync); auto: frozen with pretrained weights, else train",
    )
    grad_checkpointing: bool = Field(
        False,
        description="activation checkpointing: recompute activations in the backward pass, for "
        "less memory and more time",
    )
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout rate before the classifier; null: default of the backbone"
    )
    head: Literal["linear", "mlp"] = Field(
        "linear",
        description="classifier: one linear layer, or mlp with hidden layers, which is trained in "
        "epochs without a linear probe",
    )
    head_params: dict[str, Any] = Field(
        default_factory=dict,
        description="mlp: hidden (widths, [512]), drop_rate (0), activation "
        f"({', '.join(ACTIVATION_NAMES)})",
    )
    head_init: Literal["auto", "zero", "xavier", "he"] = Field(
        "auto",
        description="first weights of the classifier where no linear probe is fitted; auto: zero, "
        "so that the first gradients do not move the backbone; hidden layers: he, and xavier with "
        "tanh",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model, or of your own function",
    )
    pretrained_cfg: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides of the preprocessing of the weights: mean, std, interpolation, "
        "crop_pct, crop_mode",
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_weights(cls, values: Any) -> Any:
        """Set random weights for a network of one's own unless weights are given."""
        if isinstance(values, dict) and is_import_path(str(values.get("backbone", ""))):
            return {"weights": "random", **values}
        return values

    @model_validator(mode="after")
    def _check_head_params(self) -> "ModelConfig":
        if self.head_params and self.head != "mlp":
            raise ValueError(
                f"head_params cannot apply to model.head={self.head}. Set model.head=mlp, or leave "
                f"head_params out."
            )
        parse_mlp_options(self.head_params)
        return self

    @property
    def mlp_options(self) -> MlpOptions | None:
        """Hidden layers of the classifier; None for a linear one."""
        return parse_mlp_options(self.head_params) if self.head == "mlp" else None


class TrainerConfig(Section):
    """Training loop, hardware and stopping."""

    epochs: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="number of epochs; auto: by the number of training images"
    )
    batch_size: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="images per optimizer step, over all processes and accumulated "
        "micro-batches; auto: 32, and 64 or 128 from 5,000 or 50,000 images",
    )
    accumulate_grad_batches: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="micro-batches per process whose gradients are accumulated for one step; "
        "auto: 1, and more if the batch does not fit into the memory",
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto",
        description="numeric precision; auto: bf16-mixed if it is faster on this hardware, else "
        "32-true",
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="device type; auto: a GPU if there is one"
    )
    devices: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="processes per node; auto: those of the launcher, else 1"
    )
    num_nodes: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="number of nodes; auto: those of the launcher, else 1"
    )
    strategy: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="ddp: every process holds the whole network; fsdp: weights, gradients and "
        "optimizer states are sharded over the GPUs",
    )
    collective_timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="seconds that a process waits for another one before the run fails",
    )
    gradient_clip_val: float = Field(
        1.0, ge=0, description="maximum norm of the gradients; 0: no clipping"
    )
    monitor: Literal["auto"] | Monitor = Field(
        "auto",
        description="validation metric that the run is judged by, and, if it is set, that selects "
        "the best epoch: accuracy, balanced_accuracy, macro_f1 or loss; of multi-label images "
        "mean_average_precision, micro_average_precision, macro_f1, micro_f1, subset_accuracy or "
        "loss; auto: macro_f1 above an imbalance ratio of 2, else accuracy; mean_average_precision "
        "of multi-label images",
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="epochs in a row that do not improve checkpoint.monitor over the best model so "
        "far, the linear probe included, before training stops; null: no early stopping",
    )
    train_eval: Switch = Field(
        "auto",
        description="measure a fixed sample of the training images as the validation images are, "
        "after each epoch, at most as many: train_eval/... in metrics.csv; auto: on if there are "
        "validation images. Training itself does not change",
    )
    compile: bool = Field(
        False,
        description="use torch.compile: minutes of compilation, then faster steps on a GPU; if "
        "it fails, training continues without it",
    )
    deterministic: bool = Field(False, description="use only deterministic GPU kernels")


class CheckpointConfig(Section):
    """Choice of the best epoch, and checkpoints within an epoch."""

    monitor: Literal["auto", "calibrated_loss"] | Monitor = Field(
        "auto",
        description="validation metric that selects the best epoch, one of trainer.monitor or "
        "calibrated_loss, the log loss after the temperature that suits these images best; auto: "
        "trainer.monitor if it is set, mean average precision (mAP) with several labels and the "
        "asymmetric loss or class weights, else calibrated_loss",
    )
    every_minutes: Annotated[float, Field(gt=0)] | None = Field(
        10.0,
        description="minutes between checkpoints within an epoch, in case of a crash; null: "
        "none. A stop signal (SIGTERM, SIGUSR1, SIGHUP, Ctrl-C) always saves a checkpoint",
    )


class Config(Section):
    """Config of a run."""

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
    report: ReportConfig = Field(default_factory=ReportConfig)
    rejection: RejectionConfig = Field(default_factory=RejectionConfig)
    cross_validation: CrossValidationConfig = Field(default_factory=CrossValidationConfig)
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="seed of the split, the order, the augmentation and random weights",
    )
    resume: Literal["never", "auto"] = Field(
        "never", description="never, or auto: resume the run in output if there is one"
    )
    output: str | None = Field(
        None, description="run folder; null: runs/<date>-<backbone>-<data folder>"
    )

    @property
    def split_seed(self) -> int:
        """Seed of splits and folds that are drawn."""
        return self.seed if self.data.split_seed is None else self.data.split_seed
