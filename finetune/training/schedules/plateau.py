"""Reduction of the learning rate on a plateau of the validation metric, with its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from finetune.units import is_number

_STATE_KEYS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


@dataclass(frozen=True, slots=True)
class PlateauSettings:
    """Settings of the reduction on a plateau.

    Attributes:
        monitor: Validation metric, such as ``val/calibrated_loss``: a loss, or one to maximise.
        factor: Factor of each reduction, above 0 and below 1.
        patience: Epochs in a row without an improvement that are accepted before a reduction.
        threshold: Least improvement, relative to the best value.
        cooldown: Epochs after a reduction that do not count.
        min_factor: Least learning rate, relative to the schedule without reductions.
    """

    monitor: str
    factor: float = 0.1
    patience: int = 2
    threshold: float = 1e-4
    cooldown: int = 0
    min_factor: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A value is out of range.
        """
        checks = {
            "factor": (is_number(self.factor) and 0 < self.factor < 1, "between 0 and 1"),
            "patience": (_is_count(self.patience), "a whole number of 0 or more"),
            "threshold": (
                is_number(self.threshold) and 0 <= self.threshold < 1,
                "0 or more and below 1",
            ),
            "cooldown": (_is_count(self.cooldown), "a whole number of 0 or more"),
            "min_factor": (
                is_number(self.min_factor) and 0 <= self.min_factor <= 1,
                "between 0 and 1",
            ),
        }
        for name, (is_valid, expected) in checks.items():
            if not is_valid:
                raise ValueError(f"{name}={getattr(self, name)} is not {expected}")


class PlateauFactor:
    """Factor of all learning rates that torch's ``ReduceLROnPlateau`` lowers.

    Args:
        settings: Settings of the reduction.
    """

    def __init__(self, settings: PlateauSettings) -> None:
        self.settings = settings
        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._scheduler = ReduceLROnPlateau(
            self._optimizer,
            mode="min" if settings.monitor.endswith("loss") else "max",
            factor=settings.factor,
            patience=settings.patience,
            threshold=settings.threshold,
            cooldown=settings.cooldown,
            min_lr=settings.min_factor,
        )

    @property
    def value(self) -> float:
        """The present factor, in (0, 1]."""
        return float(self._optimizer.param_groups[0]["lr"])

    def update(self, metric: float) -> None:
        """Register the metric of an epoch, which may lower the factor."""
        self._scheduler.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        state = self._scheduler.state_dict()
        return {
            "monitor": self.settings.monitor,
            "factor": self.value,
            **{key: state[key] for key in _STATE_KEYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; of another metric only the factor, since its best value says nothing."""
        self._optimizer.param_groups[0]["lr"] = state["factor"]
        if state["monitor"] == self.settings.monitor:
            self._scheduler.load_state_dict({key: state[key] for key in _STATE_KEYS})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
