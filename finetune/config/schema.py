"""The config tree: every key, its default, its range and one line on what it does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from finetune.lookup import did_you_mean

# The built-in rows of the tables on the floors above; a contract test holds them equal.
UNFREEZE_NAMES = ("all", "linear_probe", "head_first", "gradual", "milestones")
SAMPLER_NAMES = (
    "uniform", "weighted", "sqrt", "effective_number", "oversample", "undersample", "progressive",
    "deferred", "abundant_first",
)  # fmt: skip
IMBALANCE_NAMES = (
    "none", "weighted", "sqrt", "effective_number", "oversample", "undersample", "progressive",
    "drs", "drw", "abundant_first", "class_weights", "focal", "logit_adjusted", "ldam", "ldam_drw",
    "crt", "tau_norm", "post_hoc",
)  # fmt: skip
CLASS_WEIGHT_NAMES = ("balanced", "effective_number")
LR_SCHEDULE_NAMES = ("cosine", "linear", "constant")
LOSS_NAMES = ("cross_entropy", "focal", "logit_adjusted", "ldam")
AUGMENT_NAMES = ("none", "light", "medium", "strong")
OPTIMIZER_NAMES = ("adamw", "sgd")

Auto = Literal["auto"]


def _known_name(names: Sequence[str], *, own_code: bool = True) -> Callable[[str], str]:
    """Return a validator that takes a known name, or ``package.module:attribute``."""

    def check(value: str) -> str:
        if value in names or (own_code and ":" in value):
            return value
        raise ValueError(f"unknown name '{value}'.{did_you_mean(value, names)}")

    return check


def _augment_name(value: str) -> str:
    """Take a preset, or the path of a pipeline saved by Albumentations."""
    if value in ("auto", *AUGMENT_NAMES) or value.lower().endswith((".json", ".yaml", ".yml")):
        return value
    raise ValueError(
        f"unknown preset '{value}'.{did_you_mean(value, AUGMENT_NAMES)} "
        f"A pipeline saved with Albumentations is named by its .json or .yaml file"
    )


def _on_and_off_are_words(value: Any) -> Any:
    """Undo YAML 1.1, which reads a bare ``off`` as false and ``on`` as true."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _two_sides(value: Any) -> Any:
    """Take 128,224 as it is typed, and 128 for both."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    return value.split(",") if isinstance(value, str) and "," in value else value


_Side = Annotated[int, Field(ge=8, le=4096)]

Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_and_off_are_words)]


def _cache_place(value: str) -> str:
    """Take a word, or a folder that is not a mistyped word."""
    words = ("auto", "on", "off")
    if value in words or "/" in value or Path(value).is_dir():
        return value
    raise ValueError(
        f"'{value}' is neither {', '.join(words)} nor a folder.{did_you_mean(value, words)} "
        f"A new folder is named with a slash, as in ./{value}"
    )


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values are not changed after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Section):
    """The images and how they are read."""

    path: str | None = Field(
        None, description="folder of class folders, folder of train/val/test folders, or a CSV"
    )
    image_size: _Side | Auto = Field(
        "auto", description="side of the square input in pixels; auto: what the weights expect"
    )
    train_sizes: Annotated[tuple[_Side, _Side] | Auto, BeforeValidator(_two_sides)] = Field(
        "auto",
        description="sides of training images in the first and the last epoch, as 128,224, between "
        "which they grow evenly, or one for all; smaller ones are cheaper, and cut from an image "
        "look as large to the network as whole images of image_size do (Touvron et al. 2019)",
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share for validation where the data give no split"
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="share for a final test where the data give no split"
    )
    min_images_per_class: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="fewest images a class may have; auto: one for each split. Smaller classes, "
        "where allowed here, only train",
    )
    leaks: Literal["warn", "drop", "move", "error", "ignore"] = Field(
        "warn",
        description="what to do where given splits hold out images whose copies are seen before; "
        "a split that is drawn keeps copies on one side where its groups allow. warn: measure "
        "without them, too; drop: leave out the copies that train; move: let all copies train; "
        "ignore: look for none",
    )
    max_megapixels: float = Field(
        178.0,
        gt=0,
        le=178.9,
        description="larger images are left out as decompression bombs; 178.9 is Pillow's limit",
    )
    cache: Annotated[str, AfterValidator(_cache_place), BeforeValidator(_on_and_off_are_words)] = (
        Field(
            "auto",
            description="decode images once, to a store on disk: on, off, or the folder of "
            "the stores; auto: on for more than one epoch where it fits",
        )
    )
    cache_px: Annotated[int, Field(ge=8, le=8192)] | Auto = Field(
        "auto",
        description="shorter side of stored training images; auto: what the smallest crop of the "
        "augmentation needs",
    )
    num_workers: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="processes that read images; auto: the free cores, on a GPU at most 16, on the "
        "CPU at most 2",
    )

    @model_validator(mode="after")
    def _leaves_training_images(self) -> "DataConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} "
                f"leave no images to train on; their sum must stay below 1"
            )
        return self


class CacheConfig(Section):
    """The stores on disk that runs share."""

    max_gb: float = Field(
        50.0, gt=0, description="size of all stores; what was used longest ago is removed first"
    )


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


class UnfreezeConfig(Section):
    """Which layer groups train in which epoch."""

    name: Annotated[str, AfterValidator(_known_name(("auto", *UNFREEZE_NAMES)))] = Field(
        "auto",
        description="all, linear_probe, head_first, gradual, milestones, or "
        "package.module:function; auto: all after a probe and with random "
        "weights, else head_first",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="head_first: epochs; gradual: start, every, step; milestones: depths",
    )


class ProbeConfig(Section):
    """The head fitted to what the frozen backbone says, before anything else trains."""

    enabled: Switch = Field(
        "auto",
        description="begin with a head fitted until nothing improves, which fine-tuning must then "
        "beat; auto: with pretrained weights. off: linear_probe trains the head in epochs",
    )
    mirrored: Switch = Field(
        "auto",
        description="fit to each image in a mirror, too; auto: if augment.name flips, and the "
        "probe is all there is or has fewer than 1,000 images",
    )
    views: Annotated[int, Field(ge=0, le=5)] | Auto = Field(
        "auto",
        description="fit to so many parts of each image, too: its middle, then its corners; auto: "
        "1 for fewer than 1,000 images that the augmentation crops",
    )
    depth: int = Field(
        1,
        ge=1,
        description="layer groups that it trains, from the head: 1, the head alone; 2, the last "
        "group of the backbone, too, on kept maps of what lies before it",
    )
    passes: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="epochs over the kept maps; auto: 6, and 0 with probe.depth=1"
    )


class ImbalanceConfig(Section):
    """What is done about classes of unequal size."""

    strategy: Annotated[
        str, AfterValidator(_known_name(("auto", *IMBALANCE_NAMES), own_code=False))
    ] = Field(
        "auto",
        description="none; weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, drs or abundant_first (which images are drawn); class_weights or drw (what "
        "they weigh in the loss); focal, logit_adjusted, ldam or ldam_drw (the loss itself); crt, "
        "tau_norm or post_hoc (the classifier, after training); auto: by the sizes of the classes",
    )
    sampler: Annotated[str, AfterValidator(_known_name(("auto", *SAMPLER_NAMES)))] = Field(
        "auto",
        description="uniform, weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, deferred, abundant_first or package.module:function; auto: by strategy",
    )
    sampler_params: dict[str, Any] = Field(
        default_factory=dict,
        description="weighted: power; effective_number: beta; deferred: from_share; "
        "abundant_first: share, of_largest, power",
    )
    class_weights: Annotated[
        str,
        AfterValidator(_known_name(("auto", "none", *CLASS_WEIGHT_NAMES), own_code=False)),
    ] = Field(
        "auto",
        description="factor of a class in the loss: none, balanced or effective_number; auto: by "
        "strategy",
    )
    class_weights_params: dict[str, Any] = Field(
        default_factory=dict, description="effective_number: beta"
    )
    class_weights_from: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="share of the epochs after which class weights begin; auto: by strategy, and 0",
    )
    head: Literal["auto", "none", "crt", "tau_norm", "post_hoc"] = Field(
        "auto",
        description="what is done to the trained classifier: crt fits it again to all classes "
        "alike (Kang et al. 2020), tau_norm evens out the norms of its weights, post_hoc adjusts "
        "its answers to classes of equal size (Menon et al. 2021); auto: by strategy",
    )
    allow_double: bool = Field(
        False, description="let several settings correct for the same imbalance"
    )


class AugmentConfig(Section):
    """What happens to training images."""

    name: Annotated[str, AfterValidator(_augment_name)] = Field(
        "auto",
        description="none, light, medium, strong, or a pipeline saved with Albumentations "
        "(.json, .yaml); auto: medium",
    )
    rare: Annotated[
        Literal["off", "light", "medium", "strong"], BeforeValidator(_on_and_off_are_words)
    ] = Field("off", description="a stronger preset for the images of rare classes; off: none")
    rare_below: float = Field(
        0.2, gt=0, le=1, description="a class is rare with under this share of the largest's images"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="mix pairs of images and their losses by a Beta(mixup, mixup) share (Zhang et "
        "al. 2018); 0: never, 0.2 is usual",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="put a box of one image into another, of a Beta(cutmix, cutmix) area, and mix "
        "their losses (Yun et al. 2019); 0: never, 1 is usual. With mixup, too, a coin decides",
    )

    @model_validator(mode="after")
    def _rare_below_applies(self) -> "AugmentConfig":
        if self.rare == "off" and self.rare_below != 0.2:
            raise ValueError("rare_below cannot apply to rare=off; name a preset for rare classes")
        return self


class OptimConfig(Section):
    """The optimizer and its learning rates."""

    name: Annotated[str, AfterValidator(_known_name(OPTIMIZER_NAMES, own_code=False))] = Field(
        "adamw", description="adamw, or sgd with Nesterov momentum"
    )
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        "auto", description="peak learning rate of the head; auto: adamw 0.001, sgd 0.01"
    )
    backbone_lr_scale: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto",
        description="the last backbone group learns at lr times this; auto: with adamw from the "
        "size of its weights, so that a step moves them by 2%; with sgd 0.05; random weights: 1",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="each group further from the head learns at this times the one before; "
        "auto: 0.7 a stage of the network, with random weights 1",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=10, description="decoupled for adamw; spares biases and norms"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    average_last: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto",
        description="measure and keep the mean of the weights over this last share of all steps "
        "(Izmailov et al. 2018); 0: the weights of each epoch's end",
    )

    @model_validator(mode="after")
    def _momentum_applies(self) -> "OptimConfig":
        if "momentum" in self.model_fields_set and self.name != "sgd" and self.momentum != 0.9:
            raise ValueError(
                f"momentum is a setting of optim.name=sgd and cannot apply to "
                f"optim.name={self.name}"
            )
        return self


class LrScheduleConfig(Section):
    """How the learning rates move over the steps."""

    name: Annotated[str, AfterValidator(_known_name(LR_SCHEDULE_NAMES))] = Field(
        "cosine", description="cosine, linear, constant or package.module:function"
    )
    warmup_fraction: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="share of all steps that the learning rate rises, again after each unfreezing",
    )
    final_factor: float = Field(
        0.01, ge=0, le=1, description="cosine and linear end at this times the peak"
    )

    @model_validator(mode="after")
    def _final_factor_applies(self) -> "LrScheduleConfig":
        if self.name == "constant" and self.final_factor != 0.01:
            raise ValueError(
                "final_factor cannot apply to lr_schedule.name=constant, which has no end"
            )
        return self


class LossConfig(Section):
    """What is minimised."""

    name: Annotated[str, AfterValidator(_known_name(("auto", *LOSS_NAMES)))] = Field(
        "auto",
        description="cross_entropy, focal, logit_adjusted, ldam or package.module:function; auto: "
        "by imbalance.strategy",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="focal: gamma; logit_adjusted: tau; ldam: max_margin, scale",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="share of the target spread over all classes; auto: 0.1; 0 with "
        "logit_adjusted, post_hoc, a loss that takes none, and a probe alone",
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
    accumulate: Annotated[int, Field(ge=1)] | Auto = Field(
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
    gradient_clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no limit")
    monitor: Literal["auto", "accuracy", "balanced_accuracy", "macro_f1", "loss"] = Field(
        "auto",
        description="validation metric of the best epoch; auto: accuracy, and macro_f1 where one "
        "class has over twice the images of another",
    )
    early_stopping: Annotated[int, Field(ge=1)] | None = Field(
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


class CalibrationConfig(Section):
    """How sure the finished model says it is."""

    enabled: Switch = Field(
        "auto",
        description="fit a temperature to the validation images, where it lowers the log loss of "
        "images that it was not fitted to; auto: with at least 200 of them",
    )


class TrackingConfig(Section):
    """Where the numbers go besides metrics.csv."""

    wandb: Annotated[
        Literal["off", "offline", "online"],
        BeforeValidator(_on_and_off_are_words),
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
