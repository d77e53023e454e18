"""Two processes take the same augmentation from the features as one."""

from pathlib import Path

import pytest
import yaml

import finetune
from tests.commands.measurement.test_augmentation_check import build_config, write_images
from tests.support.runs import write_weights

pytestmark = pytest.mark.runs


def test_augmentation_measured_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    data = write_images(tmp_path / "data", are_mirrored=True, num_images=30)
    augments, reasons = [], []
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        config = build_config(
            data, run, weights, trainer__devices=devices, data__cache=str(tmp_path / f"{devices}")
        )
        result = finetune.fit(config)
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        augments.append(tree["augment"])
        reasons.append({key: entry["value"] for key, entry in result.measured.items()})
    assert augments[0] == augments[1]
    assert augments[0]["hflip"] == "off"
    assert reasons[0].keys() >= {"augment.hflip", "optim.lr"}
    assert reasons[0] == reasons[1]
