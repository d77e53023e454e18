"""What "auto" stands for: pure rules from facts about the data, the weights and the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.schema import Config

IMBALANCED_FROM = 2.0
"""Largest class over smallest class from which accuracy alone misleads."""

CALIBRATED_FROM = 200
"""Validation images from which a temperature fitted to them helps more than it costs.

It costs about 1 / (2 N) of log loss on other images. Measured on photos with probed and fine-tuned
resnet18: fitted to 100 images the loss rose for half of the models, from 150 on for none.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at.

    Attributes:
        class_counts: Training images of each class.
        num_val: Validation images.
        pretrained: Whether the backbone starts from weights.
        num_groups: Layer groups of the network, the head included.
        linear_head: Whether its classifier is one linear layer.
        image_size: Side in pixels that the weights expect.
        fast_bf16: Whether the machine computes bfloat16 faster than float32.
        free_cores: Cores that the processes of this machine share.
        accelerator: "cpu", "cuda" or "mps".
        processes_per_node: What the cluster job started on each machine; 1 outside one.
        num_nodes: Machines of the cluster job; 1 outside one.
    """

    class_counts: Sequence[int]
    pretrained: bool
    num_groups: int
    image_size: int
    fast_bf16: bool
    free_cores: int
    num_val: int = 0
    linear_head: bool = True
    accelerator: str = "cpu"
    processes_per_node: int = 1
    num_nodes: int = 1

    @property
    def num_images(self) -> int:
        """Training images in all classes."""
        return sum(self.class_counts)

    @property
    def imbalance_ratio(self) -> float:
        """Images of the largest class over those of the smallest."""
        return max(self.class_counts) / max(1, min(self.class_counts))


def auto_values(config: Config, facts: Facts) -> dict[str, Any]:
    """Return dotted key to value for the keys at "auto" that facts decide.

    The accelerator, the imbalance strategy's parts and the smallest class are decided elsewhere.
    """
    rules: dict[str, Any] = {
        "data.image_size": facts.image_size,
        "data.num_workers": _num_workers(facts, config.trainer.devices),
        "model.batch_norm": "frozen" if facts.pretrained else "train",
        "unfreeze.name": "head_first" if facts.pretrained else "all",
        "probe.enabled": _words(_begins_with_a_probe(config, facts)),
        "augment.name": "medium",
        "optim.lr": {"adamw": 1e-3, "sgd": 1e-2}[config.optim.name],
        "optim.backbone_lr_scale": 0.05 if facts.pretrained else 1.0,
        "optim.layer_decay": _layer_decay(facts) if facts.pretrained else 1.0,
        "trainer.epochs": _epochs(facts),
        "trainer.batch_size": _batch_size(facts.num_images, parts=_parts(config, facts)),
        "trainer.accumulate": 1,
        "trainer.precision": "bf16-mixed" if facts.fast_bf16 else "32-true",
        "trainer.devices": facts.processes_per_node,
        "trainer.num_nodes": facts.num_nodes,
        "calibration.enabled": _words(facts.num_val >= CALIBRATED_FROM),
        "trainer.monitor": "macro_f1" if facts.imbalance_ratio > IMBALANCED_FROM else "accuracy",
    }
    tree = config.model_dump()
    chosen = {key: value for key, value in rules.items() if _at(tree, key) == "auto"}
    if chosen.get("unfreeze.name") == "head_first" and not config.unfreeze.params:
        epochs = chosen.get("trainer.epochs", config.trainer.epochs)
        chosen["unfreeze.params"] = {"epochs": max(1, round(0.3 * epochs))} if epochs > 1 else {}
    return chosen


def _begins_with_a_probe(config: Config, facts: Facts) -> bool:
    """Where the backbone knows something, and rank 0 holds all of it."""
    return facts.pretrained and facts.linear_head and config.trainer.strategy == "ddp"


def _words(value: bool) -> str:
    return "on" if value else "off"


def _epochs(facts: Facts) -> int:
    """Fewer passes over larger sets; from scratch three times as many."""
    epochs = 10 if facts.num_images < 5_000 else 8 if facts.num_images < 50_000 else 5
    return epochs if facts.pretrained else 3 * epochs


def _batch_size(num_images: int, *, parts: int) -> int:
    """Larger for larger sets, and a multiple of the parts that it runs in."""
    least = 32 if num_images < 5_000 else 64 if num_images < 50_000 else 128
    return -(-least // parts) * parts


def _parts(config: Config, facts: Facts) -> int:
    """Return over how many processes and accumulated batches a step is divided."""
    trainer = config.trainer
    devices = facts.processes_per_node if isinstance(trainer.devices, str) else trainer.devices
    nodes = facts.num_nodes if isinstance(trainer.num_nodes, str) else trainer.num_nodes
    return devices * nodes * (1 if isinstance(trainer.accumulate, str) else trainer.accumulate)


def _num_workers(facts: Facts, devices: int | str) -> int:
    """Leave one core to each training process; two cores or fewer read in the process itself.

    A GPU waits for its images; on the CPU the step needs the cores more than the reading does.
    """
    processes = facts.processes_per_node if isinstance(devices, str) else devices
    spare = facts.free_cores // processes - 1
    return min(2 if facts.accelerator == "cpu" else 16, spare) if spare > 1 else 0


def _layer_decay(facts: Facts) -> float:
    """0.7 a stage of a five-stage network, spread over however many groups there are."""
    decay: float = 0.7 ** (4 / max(4, facts.num_groups - 2))
    return round(decay, 4)


def _at(tree: dict[str, Any], dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree[name]
    return tree
