"""Weights of a run that its bundle holds, and the epoch that was best."""

import math
from collections.abc import Sequence

from finetune.report.number_formats import format_metric_name, is_loss
from finetune.report.run_facts import Row, RunFacts
from finetune.units import format_count


def find_best_epoch(rows: Sequence[Row], metric: str) -> int | None:
    """Return the epoch with the best value of a validation metric, 0 for the linear probe.

    None if no row has a finite value of it.
    """
    sign = 1 if is_loss(metric) else -1
    known = [row for row in rows if math.isfinite(row.get(f"val/{metric}", math.nan))]
    if not known:
        return None
    return int(min(known, key=lambda row: sign * row[f"val/{metric}"])["epoch"])


def get_checkpoint_monitor(facts: RunFacts) -> str:
    """Return the metric that selects the best epoch."""
    monitor = facts.config.get("checkpoint.monitor")
    return facts.monitor if monitor in (None, "auto") else str(monitor)


def is_probe_kept(facts: RunFacts) -> bool:
    """Return whether the bundle holds the linear probe, with the backbone as it was."""
    if not facts.card or facts.members or facts.folds is not None:
        return False
    if facts.config.get("unfreeze.name") == "linear_probe":
        return bool(facts.config.get("probe.depth", 1) == 1)
    fraction = _get_position(facts)
    if fraction is not None:
        return fraction == 0
    return find_best_epoch(facts.rows, get_checkpoint_monitor(facts)) == 0


def describe_kept_weights(facts: RunFacts) -> str:
    """Return sentences on the weights of the bundle; empty while there is none."""
    if not facts.card:
        return ""
    kept = f"The bundle holds {_name_weights(facts)}{_name_changes(facts)}."
    last = _find_last_epoch(facts)
    if _get_position(facts) != 0:
        return kept
    epochs = "Fine-tuning" if last is None else f"Fine-tuning for {format_count(last, 'epoch')}"
    return f"{kept} {epochs} did not improve on it."


def _get_position(facts: RunFacts) -> float | None:
    """Return the position of the weights from the probe at 0 to the last epoch at 1, if known."""
    position = (facts.facts.get("interpolation") or {}).get("fraction")
    return None if position is None else float(position)


def _find_last_epoch(facts: RunFacts) -> int | None:
    return max((int(row["epoch"]) for row in facts.rows), default=None)


def _name_weights(facts: RunFacts) -> str:
    if facts.members:
        return f"an ensemble: the mean of the probabilities of {len(facts.members)} networks"
    if facts.folds is not None:
        return "one network, trained on all images with what the folds found"
    last, fraction = _find_last_epoch(facts), _get_position(facts)
    if fraction is not None and fraction < 1:
        if fraction == 0:
            return "the linear probe"
        end = "the last epoch" if last is None else f"epoch {last}"
        return (
            f"the weights at {fraction:g} of the way from the linear probe to {end}, which were "
            f"better than either end"
        )
    if last is None:  # a bundle without its run, or a run whose metrics.csv is lost
        return (
            "the weights of the last epoch" if fraction == 1 else "the weights that its run chose"
        )
    metric = get_checkpoint_monitor(facts)
    best = last if fraction == 1 else find_best_epoch(facts.rows, metric)
    if best is None:
        return "the weights of the last epoch"
    if best == 0 or facts.config.get("unfreeze.name") == "linear_probe":
        return "the linear probe"
    name = format_metric_name(metric)
    return f"the weights of epoch {best} of {last}, the best by {name[0].lower() + name[1:]}"


def _name_changes(facts: RunFacts) -> str:
    """Return what was changed after training: the classifier, temperature and class prior."""
    changes = []
    method = facts.config.get("imbalance.head_rebalancing")
    if method in ("crt", "tau_norm"):
        tau = (facts.facts.get("rebalancing") or {}).get("tau")
        strength = "" if tau is None else f" with tau {tau:g}"
        changes.append(f"its classifier re-balanced by {method}{strength}")
    temperature = facts.card.get("temperature", 1.0)
    if temperature != 1.0:
        changes.append(f"its probabilities calibrated with temperature {temperature:.3g}")
    if (facts.card.get("priors") or {}).get("target") is not None:
        changes.append("its logits adjusted to another class prior")
    if not changes:
        return ""
    *first, final = changes
    return ", with " + (", ".join(first) + " and " if first else "") + final
