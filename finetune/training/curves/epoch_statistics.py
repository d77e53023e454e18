"""Numbers of an epoch beside its loss: gradient norms, changes of the weights, and speed."""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from finetune.models.classifier import ImageClassifier
from finetune.training.curves.group_statistics import GroupStatistics
from finetune.training.curves.train_clock import TrainClock

_PREFIXES = ("grad_norm/", "weight_change/", "images_per_second")


class EpochStatistics:
    """Statistics of the layer groups and of the speed over the training steps of an epoch.

    Args:
        classifier: Classifier whose weights train.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.groups = GroupStatistics(classifier)
        self.clock = TrainClock()
        self._changes: dict[str, float] | None = None

    def start_epoch(self, *, is_sharded: bool) -> None:
        """Begin an epoch.

        Args:
            is_sharded: Whether each process holds a part of the weights, whose statistics are left
                out.
        """
        self._changes = None
        if not is_sharded:
            self.groups.start_epoch()
        self.clock.start()

    def end_steps(self) -> str | None:
        """End the training steps, before the validation, and wait for the device.

        Returns:
            A layer group whose weights are not finite; None if all are.
        """
        self.clock.stop()
        changes = self.groups.compute_weight_changes()
        self._changes = dict(changes.relative)
        return changes.damaged

    def collect(self, logged: MutableMapping[str, Any]) -> dict[str, float | Tensor]:
        """Return the statistics of the epoch by name, and forget the weights at its start.

        Args:
            logged: Metrics that Lightning keeps, also those of a group that is frozen since; the
                statistics of earlier epochs are removed from it.
        """
        if self._changes is None:  # resumed after the last step
            self.end_steps()
        for name in [name for name in logged if name.startswith(_PREFIXES)]:
            del logged[name]
        norms, changes = self.groups.compute_grad_norms(), self._changes or {}
        speed = self.clock.images_per_second
        self.groups.finish_epoch()
        return {
            **{f"grad_norm/{name}": norm for name, norm in norms.items()},
            **{f"weight_change/{name}": change for name, change in changes.items()},
            **({} if speed is None else {"images_per_second": speed}),
        }
