"""Config sections on what trains and what is reported: unfreezing, probe, calibration."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from finetune.config.section import Auto, Section, Switch, build_name_validator

# Names in the tables of higher layers; a contract test compares them.
UNFREEZE_NAMES = ("all", "linear_probe", "head_first", "gradual", "milestones")


class UnfreezeConfig(Section):
    """Schedule of unfreezing: which layer groups train in which epoch."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *UNFREEZE_NAMES)))] = Field(
        "auto",
        description="all, linear_probe, head_first, gradual, milestones, or "
        "package.module:function; auto: all after a linear probe and with random weights, else "
        "head_first",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="head_first: epochs of the head alone, depth afterwards; gradual: start, "
        "every, step; milestones: depths",
    )


class ProbeConfig(Section):
    """Linear probe: the head, fitted to features of the frozen backbone before fine-tuning."""

    enabled: Switch = Field(
        "auto",
        description="fit a linear probe first, which initializes the head and is the baseline of "
        "fine-tuning; auto: with pretrained weights. off: unfreeze.name=linear_probe trains the "
        "head in epochs",
    )
    hflip: Switch = Field(
        "auto",
        description="also fit to horizontally flipped images; auto: if augment.name flips images "
        "and fine-tuning follows on fewer than 1,000 images, or the last stage is trained alone",
    )
    num_crops: Annotated[int, Field(ge=0, le=5)] | Auto = Field(
        "auto",
        description="number of crops of each image to fit to in addition: center, then corners; "
        "auto: 1 with probe.depth of 2 or more, fewer than 1,000 images and random crops",
    )
    depth: int = Field(
        1,
        ge=1,
        description="number of layer groups to train, from the head: 1 for the head only, 2 to "
        "also train the last stage of the backbone, on cached activations of the stages before",
    )
    last_stage_epochs: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="epochs on cached activations; auto: 6, and 0 with probe.depth=1"
    )
    stages: Switch = Field(
        "auto",
        description="compare heads on earlier stages with that on the last features; auto: up to "
        "20,000 training images",
    )


class CalibrationConfig(Section):
    """Calibration of the probabilities of the best model."""

    enabled: Switch = Field(
        "auto",
        description="fit a temperature to the validation images, if it lowers the log loss in "
        "cross-validation; auto: with at least 30 of them",
    )
