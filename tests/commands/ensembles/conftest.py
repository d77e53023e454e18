"""Runs whose models are combined: two of one split and start, and one of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import finetune


@dataclass(frozen=True)
class Runs:
    """Run folders.

    Attributes:
        first: Run of seed 0.
        second: Run of the same split and initial weights, with another learning rate.
        other_seed: Run with another split and other initial weights.
    """

    first: Path
    second: Path
    other_seed: Path


def train(root: Path, output: Path, **changes: Any) -> Path:
    """Return the folder of a run of one epoch with a small network."""
    sections: Mapping[str, Mapping[str, Any]] = {
        "data": {"path": str(root), "image_size": 32, "test_fraction": 0.2},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "light", "hflip": "on"},
        "optim": {"lr": 0.01},
        "trainer": {
            "epochs": 1, "batch_size": 8, "accelerator": "cpu", "precision": "32-true",
            "devices": 1,
        },
    }  # fmt: skip
    tree: dict[str, Any] = {
        name: {**values, **changes.pop(name, {})} for name, values in sections.items()
    }
    config = finetune.Config.model_validate({**tree, **changes, "output": str(output)})
    return finetune.fit(config).run_dir


@pytest.fixture(scope="session")
def runs(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return three finished runs on ``insects``; never change them."""
    folder = tmp_path_factory.mktemp("ensembles")
    return Runs(
        train(insects, folder / "first"),
        train(insects, folder / "second", optim={"lr": 0.1}),
        train(insects, folder / "other-seed", seed=5),
    )
