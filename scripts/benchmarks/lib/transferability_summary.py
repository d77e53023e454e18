"""Summary of the transferability study: gains by what the program says of the earlier stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from finetune.cli.render.networks.stage_lines import describe_similarity

Row = Mapping[str, Any]

_VERDICTS = {
    "do not differ": "no difference beyond chance",
    "likely to help": "unlike: training is likely to help",
    "little to gain": "an earlier stage is better, little to gain",
    "are like those": "like those of pretraining",
}
"""What a part of the program's sentence says."""


def name_verdict(stages: Mapping[str, Any]) -> str:
    """Return what the program says of the heads on earlier stages, in short."""
    sentence = describe_similarity(stages)
    found = [verdict for part, verdict in _VERDICTS.items() if part in sentence]
    return found[0] if found else "last features better, by less than a fifth"


def compute_gains(row: Row) -> tuple[float, float]:
    """Return the points of test accuracy gained, and test log loss relative to the probe's."""
    probe, tuned = row["probe"], row["tuned"]
    return 100 * (tuned["accuracy"] - probe["accuracy"]), tuned["loss"] / probe["loss"]


def format_summary(rows: Sequence[Row]) -> str:
    """Return rank correlations over all rows, and the gains under each verdict, as Markdown."""
    ratios = [row["stages"]["loss_ratio"] for row in rows]
    leads = [row["stages"]["accuracy_lead"] for row in rows]
    gains, losses = zip(*map(compute_gains, rows), strict=True)
    lines = [f"{len(rows)} runs. Rank correlations:", ""]
    for name, values in (("loss ratio", ratios), ("accuracy lead", leads)):
        accuracy, loss = (spearmanr(values, other).statistic for other in (gains, losses))
        lines.append(f"- {name}: gain in accuracy {accuracy:.2f}, relative log loss {loss:.2f}")
    lines += [
        "",
        "| verdict | runs | gain in accuracy: mean (least to most) | log loss fell | mean log loss "
        "relative to the probe's |",
        "|---|---|---|---|---|",
    ]
    verdicts = [name_verdict(row["stages"]) for row in rows]
    for verdict in sorted(set(verdicts)):
        chosen = np.array([other == verdict for other in verdicts])
        gain, loss = np.array(gains)[chosen], np.array(losses)[chosen]
        lines.append(
            f"| {verdict} | {len(gain)} | {gain.mean():+.1f} ({gain.min():+.1f} to "
            f"{gain.max():+.1f}) | {(loss < 1).sum()} of {len(loss)} | {loss.mean():.2f} |"
        )
    return "\n".join(lines)


def format_pairs(rows: Sequence[Row]) -> str:
    """Return means over the seeds of each pair of images and backbone as a Markdown table."""
    keys = list(dict.fromkeys((row["images"], row["variant"], row["backbone"]) for row in rows))
    groups = {
        key: [row for row in rows if (row["images"], row["variant"], row["backbone"]) == key]
        for key in keys
    }
    lines = [
        "| images | backbone | seeds | loss ratio | gain in accuracy | relative log loss |",
        "|---|---|---|---|---|---|",
    ]
    for key in sorted(keys, key=lambda key: _compute_mean_ratio(groups[key])):
        gains = np.array([compute_gains(row) for row in groups[key]])
        images = key[0] if key[1] == "as they are" else f"{key[0]}, {key[1]}"
        each = ", ".join(f"{gain:+.1f}" for gain in gains[:, 0])
        lines.append(
            f"| {images} | {key[2]} | {len(gains)} | {_compute_mean_ratio(groups[key]):.2f} | "
            f"{gains[:, 0].mean():+.1f} ({each}) | {gains[:, 1].mean():.2f} |"
        )
    return "\n".join(lines)


def _compute_mean_ratio(rows: Sequence[Row]) -> float:
    return float(np.mean([row["stages"]["loss_ratio"] for row in rows]))
