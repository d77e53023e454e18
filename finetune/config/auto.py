"""What "auto" stands for: pure rules from facts about the data, the weights and the machine.

Each rule says why. The recipe stands in a module of its own; the rest fits it to the machine.
"""

from typing import Any

from finetune.config.facts import Choice, Facts
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config


def choose_auto_values(config: Config, facts: Facts) -> dict[str, Choice]:
    """Return dotted key to choice for the keys at "auto" that facts decide.

    The accelerator, the imbalance strategy's parts and the smallest class are decided elsewhere.
    """
    rules = {**choose_recipe(config, facts), **_choose_hardware_values(config, facts)}
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
    """Return the value of a key of the tree."""
    value: Any = config
    for name in dotted_key.split("."):
        value = getattr(value, name)
    return value


def _choose_hardware_values(config: Config, facts: Facts) -> dict[str, Choice]:
    """Return what changes the time and the memory, and rounding."""
    return {
        "data.num_workers": Choice(_choose_num_workers(facts, config.trainer.devices)),
        "trainer.accumulate_grad_batches": Choice(1),
        "trainer.precision": Choice("bf16-mixed" if facts.has_fast_bf16 else "32-true"),
        "trainer.devices": Choice(facts.processes_per_node),
        "trainer.num_nodes": Choice(facts.num_nodes),
    }


def _choose_num_workers(facts: Facts, devices: int | str) -> int:
    """Leave one core to each training process; two cores or fewer read in the process itself.

    A GPU waits for its images; on the CPU the step needs the cores more than the reading does.
    """
    processes = facts.processes_per_node if isinstance(devices, str) else devices
    spare = facts.free_cores // processes - 1
    return min(2 if facts.accelerator == "cpu" else 16, spare) if spare > 1 else 0
