"""Runs with a learning rate that is far too high, trained again as their diagnosis proposes."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.lib.diagnosis_folders import Builder, build_split_subset, build_subset

RATE_RULES = ("diverged", "exploded_loss", "fall_from_probe", "unsteady_loss")
"""Rules that find the learning rate too high."""

MAX_ROUNDS = 5

RunFit = Callable[[Path, tuple[str, ...]], None]
"""Function that trains with some settings in a run folder."""


@dataclass(frozen=True, slots=True)
class Round:
    """A run, and what its diagnosis says of the learning rate.

    Attributes:
        setting: Setting of the learning rate.
        probe: Validation accuracy of the linear probe; None if the run has none.
        last: Validation accuracy of the last epoch; None if the run diverged in the first one.
        rule: Rule whose problem is that the learning rate is too high; empty if there is none.
        option: Option that the diagnosis proposes.
    """

    setting: str
    probe: float | None
    last: float | None
    rule: str
    option: str

    def describe(self) -> str:
        """Return the setting with the accuracies and the rule."""
        values = " to ".join("-" if v is None else f"{v:.1%}" for v in (self.probe, self.last))
        return f"`{self.setting}`: {values}{f', `{self.rule}`' if self.rule else ''}"


def list_cure_folders(shared: Path) -> Mapping[str, Builder]:
    """Return a builder for each small folder of these runs."""
    digits = {"train": ("train", 26), "val": ("test", 20)}
    pair = ("glass", "metal")
    return {
        "digits-26": lambda root: build_split_subset(shared / "mnist", root, splits=digits),
        "glass-metal-100": lambda root: build_subset(
            shared / "trashnet", root, per_class=100, classes=pair
        ),
    }


def follow_proposals(name: str, setting: str, runs: Path, fit: RunFit) -> Iterator[Round]:
    """Train with a setting, then with what the diagnosis proposes, until no rule fires."""
    for index in range(MAX_ROUNDS):
        run = runs / f"{re.sub('[^a-z0-9.]+', '-', name)}-{index}"
        if not (run / "diagnosis.json").is_file():
            fit(run, (setting,))
        this = _read_round(run, setting)
        yield this
        if not this.rule or not this.option:
            return
        setting = this.option


def _read_round(run: Path, setting: str) -> Round:
    content = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    found = [
        one
        for one in content["findings"]
        if one["rule"] in RATE_RULES and one["severity"] == "problem"
    ]
    accuracies = _read_accuracies(run)
    return Round(
        setting,
        accuracies.get(0),
        accuracies[max(accuracies)] if any(accuracies) else None,
        found[0]["rule"] if found else "",
        found[0]["option"] if found else "",
    )


def _read_accuracies(run: Path) -> dict[int, float]:
    """Return the validation accuracy after each epoch; that of the probe is at 0."""
    from finetune.commands.diagnosis.run_evidence import read_evidence
    from finetune.system.run_folder import RunFolder

    rows = read_evidence(RunFolder(run)).curves.rows
    return {row.epoch: row.val_accuracy for row in rows if row.val_accuracy is not None}
