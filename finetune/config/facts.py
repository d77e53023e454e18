"""What the rules for "auto" look at, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at.

    Attributes:
        class_counts: Training images of each class.
        num_val_images: Validation images.
        is_pretrained: Whether the backbone starts from weights.
        num_groups: Layer groups of the network, the head included.
        weight_rms: Root mean square of the weights of its last group before the head.
        has_linear_head: Whether its classifier is one linear layer.
        has_batch_norm: Whether its layers keep statistics of batches.
        supports_any_size: Whether it serves images of ``compute_fixres_train_size`` as well as those it was made for.
        image_size: Side in pixels that the weights expect.
        has_fast_bf16: Whether the machine computes bfloat16 faster than float32.
        free_cores: Cores that the processes of this machine share.
        accelerator: "cpu", "cuda" or "mps".
        processes_per_node: What the cluster job started on each machine; 1 outside one.
        num_nodes: Machines of the cluster job; 1 outside one.
    """

    class_counts: Sequence[int]
    is_pretrained: bool
    num_groups: int
    image_size: int
    has_fast_bf16: bool
    free_cores: int
    num_val_images: int = 0
    weight_rms: float = 0.02
    has_linear_head: bool = True
    has_batch_norm: bool = True
    supports_any_size: bool = True
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


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule comes to.

    Attributes:
        value: Of the key.
        reason: Why, in a few words; empty where there is nothing to say.
    """

    value: Any
    reason: str = ""
