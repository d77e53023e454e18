"""Ways to quantise a network, and the record of those that were tried."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """Way to quantise a network.

    Attributes:
        name: Name in the record of an export.
        description: What it does.
        method: How ranges are calibrated: "minmax", "percentile" or "entropy".
        keeps_ends: Whether the first and the last layer with weights stay in float32.
    """

    name: str
    description: str
    method: str = "minmax"
    keeps_ends: bool = False


PLANS: tuple[QuantizationPlan, ...] = (
    QuantizationPlan("all", "all layers in int8"),
    QuantizationPlan("inner", "the first and the last layer in float32", keeps_ends=True),
)
"""Plans that are compared at every export.

Ranges are those of the smallest and the largest value: on ResNet-18, EfficientNet-Lite0 and
MobileNetV2, percentiles and entropy changed the outputs more and took three times as long.
"""


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """Plan that was chosen, and the losses that chose it.

    Attributes:
        plan: Name of the plan.
        description: What it does.
        divergences: Mean Kullback-Leibler divergence of the probabilities from those of the float32
            file, in nats, by plan; empty where there is only one.
        num_measured_images: Images from which the ranges were measured.
        num_judged_images: Other images, on which the plans were compared.
    """

    plan: str
    description: str
    divergences: Mapping[str, float] = field(default_factory=dict)
    num_measured_images: int = 0
    num_judged_images: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
