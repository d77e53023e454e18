"""Tests of the table of a smaller file: changes and losses as they were."""

import io
from typing import Any

import pytest
from rich.console import Console

from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.precision_table import show_precision


def render(*, loss: float, drop: dict[str, Any]) -> str:
    facts: dict[str, Any] = {
        "bytes": 1000, "images_per_second": 10.0, "accuracy": 0.9, "accuracy_interval": [0.8, 0.95],
    }  # fmt: skip
    comparison = {
        "precision": "fp16",
        "fp32": {**facts, "loss": 0.312540},
        "fp16": {**facts, "loss": loss},
        "speedup": 1.0,
        "drop": {"metric": "accuracy", "num_images": 153, "max_points": 1.0, **drop},
        "quantization": {"description": "all"},
        "processor": "CPU",
        "num_threads": 1,
        "batch_size": 8,
    }
    reporter = ConsoleReporter()
    reporter.console = Console(file=io.StringIO(), width=80)
    show_precision(reporter, comparison, split="val")
    stream = reporter.console.file
    assert isinstance(stream, io.StringIO)
    return " ".join(stream.getvalue().split())


@pytest.mark.parametrize(
    ("loss", "change"),
    [
        (0.312555, "0.3125 0.3126 +0.000015"),
        (0.312540 - 3e-8, "0.3125 0.3125 -3.0e-08"),
        (0.312540, "0.3125 0.3125 0 "),
        (0.3030, "0.3125 0.3030 -0.0095"),
    ],
)
def test_small_change_has_the_digits_that_it_needs(loss: float, change: str) -> None:
    text = render(loss=loss, drop={"points": 0.0, "low": -1.0, "high": 1.0})
    assert f"val log loss {change}" in text


def test_loss_below_zero_is_a_gain() -> None:
    gain = render(loss=0.3, drop={"points": -1.31, "low": -3.6, "high": 1.0})
    assert "val accuracy 90.0% (80-95) 90.0% (80-95) +1.31 points" in gain
    assert "gained 1.31 points of accuracy (95% interval -1.0 to 3.6) on 153 images;" in gain
    assert "a loss of 1 is allowed" in gain
    assert "lost" not in gain
    lost = render(loss=0.3, drop={"points": 0.65, "low": -1.0, "high": 2.3})
    assert "lost 0.65 points of accuracy (95% interval -1.0 to 2.3) on 153 images; 1 is" in lost
