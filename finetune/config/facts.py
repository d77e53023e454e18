"""Facts that the rules for "auto" depend on, and their choices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the data, the network and the hardware.

    Attributes:
        class_counts: Training images of each class or label.
        num_val_images: Number of validation images.
        is_pretrained: Whether the backbone starts from pretrained weights.
        num_groups: Layer groups of the network, the head included.
        has_linear_head: Whether the classifier is one linear layer.
        has_batch_norm: Whether the network has BatchNorm layers.
        supports_any_size: Whether the network accepts images of ``compute_fixres_train_size``
            without resampling its features.
        image_size: Side in pixels that the weights were trained with.
        has_fast_bf16: Whether the hardware computes bfloat16 faster than float32.
        depthwise_density: Outputs of depthwise convolutions per thousand multiply-adds of the
            network; only computed on a CPU with fast bfloat16.
        free_cores: Cores that the processes of this node share.
        accelerator: "cpu", "cuda" or "mps".
        processes_per_node: Processes that the cluster job started on each node; 1 outside one.
        num_nodes: Nodes of the cluster job; 1 outside one.
        multi_label_images: Training images that have any number of labels each; None for images of
            one class.
    """

    class_counts: Sequence[int]
    is_pretrained: bool
    num_groups: int
    image_size: int
    has_fast_bf16: bool
    free_cores: int
    num_val_images: int = 0
    depthwise_density: float = 0.0
    has_linear_head: bool = True
    has_batch_norm: bool = True
    supports_any_size: bool = True
    accelerator: str = "cpu"
    processes_per_node: int = 1
    num_nodes: int = 1
    multi_label_images: int | None = None

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.multi_label_images is not None

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return (
            sum(self.class_counts) if self.multi_label_images is None else self.multi_label_images
        )

    @property
    def imbalance_ratio(self) -> float:
        """Images of the largest class divided by those of the smallest."""
        return max(self.class_counts) / max(1, min(self.class_counts))


@dataclass(frozen=True, slots=True)
class Choice:
    """Value that a rule chooses for a key.

    Attributes:
        value: Value of the key.
        reason: Reason in a few words; empty if none is needed.
    """

    value: Any
    reason: str = ""
