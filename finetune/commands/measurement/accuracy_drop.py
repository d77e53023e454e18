"""Drop of validation accuracy below that of the linear probe in the course of fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.config.resolved import ResolvedConfig
from finetune.training.curves.loss_explosion import find_loss_explosion
from finetune.units import format_percent, format_scientific

MIN_KEPT = 0.9
"""Part of the probe's accuracy below which an epoch counts as a drop."""


@dataclass(frozen=True, slots=True)
class AccuracyDrop:
    """The lowest epoch of a run whose accuracy fell below that of its probe.

    Attributes:
        metric: Metric of the validation images, in [0, 1].
        probe: Its value for the probe.
        lowest: Its lowest value.
        epoch: Epoch of the lowest value, counted from 1.
        last: Its value after the last epoch.
    """

    metric: str
    probe: float
    lowest: float
    epoch: int
    last: float

    def describe(self, key: str, value: float) -> str:
        """Return the sentences that tell the user of the drop and how to avoid it.

        Args:
            key: Config key that determines the learning rate.
            value: Its value.
        """
        probe, lowest, last = map(format_percent, (self.probe, self.lowest, self.last))
        text = (
            f"{self.metric} fell from {probe} (linear probe) to {lowest} after epoch {self.epoch}"
        )
        if self.last >= self.probe:
            return f"{text} and rose to {last} after the last epoch."
        now = format_scientific(value, digits=2)
        return f"{text} and was {last} after the last epoch. Lower {key} (now {now})."


def find_accuracy_drop(rows: Sequence[Mapping[str, float]], metric: str) -> AccuracyDrop | None:
    """Return the drop of a run; None if each epoch kept most of the probe's accuracy.

    Args:
        rows: Metrics by name, of the probe, as epoch 0, and of each epoch.
        metric: Name of a metric in [0, 1] that is better if higher.
    """
    if len(rows) < 2 or rows[0]["epoch"] != 0:
        return None
    probe, *epochs = (row[metric] for row in rows)
    lowest = min(epochs)
    if lowest >= MIN_KEPT * probe:
        return None
    epoch = int(rows[1 + epochs.index(lowest)]["epoch"])
    return AccuracyDrop(metric, probe, lowest, epoch, epochs[-1])


def describe_accuracy_drop(
    rows: Sequence[Mapping[str, float]],
    config: ResolvedConfig,
    *,
    num_classes: int,
    is_rate_measured: bool,
) -> str | None:
    """Return the sentences about a drop or an exploded loss of a run; None if there was neither.

    Args:
        rows: Metrics by name, of the probe, as epoch 0, and of each epoch.
        config: Config of the run.
        num_classes: Number of classes or labels.
        is_rate_measured: Whether ``optim.lr`` was measured.
    """
    name: str = config.trainer.monitor
    is_multi_label = any("val/mean_average_precision" in row for row in rows)
    if name == "loss":  # of the metrics in [0, 1] the one that these images have
        name = "mean_average_precision" if is_multi_label else "accuracy"
    drop = find_accuracy_drop(rows, f"val/{name}")
    explosion = find_loss_explosion(rows, num_classes=num_classes, is_multi_label=is_multi_label)
    key = "feature_change" if is_rate_measured else "lr"
    value = getattr(config.optim, key)
    texts = [] if explosion is None else [explosion.describe()]
    if drop is not None:
        texts.append(drop.describe(f"optim.{key}", value))
    elif explosion is not None and explosion.has_lasted:
        texts.append(f"Lower optim.{key} (now {format_scientific(value, digits=2)}).")
    return " ".join(texts) or None
