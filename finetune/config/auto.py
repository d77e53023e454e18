"""Rules for "auto": pure functions of facts about the data, the weights and the hardware.

Each choice has a reason. ``recipe`` has the rules for accuracy; these here adapt it to hardware, or
leave a setting at "auto" that the run measures on cached features.
"""

from typing import Any

from finetune.config.facts import Choice, Facts
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config
from finetune.config.sections.augment import DEFAULT_PRESET, PRESET_CROP_SCALES

MAX_MEASURED_IMAGES = 400
"""Training images, at most, whose views decide on flips, turns and crops."""


MAX_DEPTHWISE_DENSITY = 2.0
"""Depthwise outputs per thousand multiply-adds up to which a CPU trains faster in bfloat16.

Measured with 18 networks, see ``scripts/benchmarks/README.md``.
"""


def choose_auto_values(config: Config, facts: Facts) -> dict[str, Choice]:
    """Return the choices for the keys at "auto" that follow from facts, by dotted key.

    The accelerator, the parts of the imbalance strategy and the smallest class size are resolved
    elsewhere.
    """
    recipe = choose_recipe(config, facts)
    probe = recipe["probe.enabled"].value if config.probe.enabled == "auto" else None
    has_probe = (probe or config.probe.enabled) == "on"
    rules = {
        **recipe,
        **_choose_geometry(config, facts, has_probe=has_probe),
        **_choose_hardware_values(config, facts),
        "trainer.train_eval": Choice("on" if facts.num_val_images else "off"),
    }
    chosen = {
        key: choice for key, choice in rules.items() if get_config_value(config, key) == "auto"
    }
    unfreeze = chosen.get("unfreeze.name")
    if unfreeze and unfreeze.value == "head_first" and not config.unfreeze.params:
        epochs = config.trainer.epochs
        epochs = chosen["trainer.epochs"].value if epochs == "auto" else epochs
        head_epochs = {"epochs": max(1, round(0.3 * epochs))} if epochs > 1 else {}
        chosen["unfreeze.params"] = Choice(head_epochs)
    return chosen


def get_config_value(config: Config, dotted_key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for name in dotted_key.split("."):
        value = getattr(value, name)
    return value


def _choose_geometry(config: Config, facts: Facts, *, has_probe: bool) -> dict[str, Choice]:
    """Return the choices for flips, turns and crops, by dotted key.

    With a probe they stay "auto" until they are measured. Without fine-tuning horizontal flips
    alone matter, and only to a last stage that is trained. Settings that cannot apply stay "auto",
    too.
    """
    name = DEFAULT_PRESET if config.augment.name == "auto" else config.augment.name
    if name not in PRESET_CROP_SCALES:
        return {}
    choices = {
        "augment.hflip": Choice("on"),
        "augment.vflip": Choice("off"),
        "augment.rot90": Choice("off"),
        "augment.min_crop_scale": Choice(PRESET_CROP_SCALES[name]),
    }
    if not has_probe:
        return choices
    is_probe_only = config.unfreeze.name == "linear_probe"
    if is_probe_only and (config.probe.hflip != "auto" or config.probe.depth == 1):
        return choices
    measured = list(choices)[:1] if is_probe_only else list(choices)
    images = min(MAX_MEASURED_IMAGES, facts.num_images)
    reason = f"measured with linear heads on views of {images:,} training images"
    return {**choices, **{key: Choice("auto", reason) for key in measured}}


def _choose_hardware_values(config: Config, facts: Facts) -> dict[str, Choice]:
    """Return the choices that change time, memory and rounding, by dotted key."""
    return {
        "data.num_workers": Choice(_choose_num_workers(facts, config.trainer.devices)),
        "trainer.accumulate_grad_batches": Choice(1),
        "trainer.precision": _choose_precision(config, facts),
        "trainer.devices": Choice(facts.processes_per_node),
        "trainer.num_nodes": Choice(facts.num_nodes),
    }


def _choose_precision(config: Config, facts: Facts) -> Choice:
    """bfloat16 where it is fast: on a CPU the backward pass of depthwise convolutions is not.

    Their forward pass is fast, so that a probe without fine-tuning uses bfloat16 in any case.
    """
    if not facts.has_fast_bf16:
        return Choice("32-true")
    if facts.accelerator != "cpu":
        return Choice("bf16-mixed")
    is_probe_only = config.unfreeze.name == "linear_probe"
    if is_probe_only or facts.depthwise_density <= MAX_DEPTHWISE_DENSITY:
        return Choice("bf16-mixed", "this CPU computes bfloat16 faster than float32")
    return Choice("32-true", "depthwise convolutions train slower in bfloat16 on a CPU")


def _choose_num_workers(facts: Facts, devices: int | str) -> int:
    """Return the loader workers per process: its cores but one, or 0 with two cores or fewer.

    At most 16 with a GPU, which waits for its images, and at most 2 on the CPU, where training
    steps need the cores more than loading does.
    """
    num_processes = facts.processes_per_node if isinstance(devices, str) else devices
    spare_cores = facts.free_cores // num_processes - 1
    maximum = 2 if facts.accelerator == "cpu" else 16
    return min(maximum, spare_cores) if spare_cores > 1 else 0
