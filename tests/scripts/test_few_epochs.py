"""``scripts/benchmarks/few_epochs.py``: the variants of a case, and the means over the cases."""

import json
from pathlib import Path

import pytest

from scripts.benchmarks import few_epochs


def test_rates_are_lowered_in_proportion_to_the_steps() -> None:
    variants = list(few_epochs.list_variants(6, settle_steps=36))
    rates = {v.name: round(v.feature_change * 36) for v in variants}
    assert rates == {"e1": 36, "e1/36": 6, "e2": 36, "e2/36": 12, "e3": 36, "e3/36": 18, "e6": 36}


def test_summary_has_the_means_and_the_paired_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for seed, (start, end) in enumerate([(0.6, 0.7), (0.8, 0.8)]):
        key = {"case": "a", "weights": "w", "side": 64, "seed": seed}
        probe = {"name": "probe", "test": [start, 1.0, start, 1 - start]}
        scores = [end, 1.0, end, 1 - end]
        run = {"name": "e1", "epochs": 1, "feature_change": 1.0, "test": [scores]}
        lines += [key | probe, key | run | {"chosen": [scores, scores]}]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few_epochs.main([str(file), "--summary"])
    output = capsys.readouterr().out
    assert "| probe | | 2 | 0.700, 0.300 |" in output
    row = "| 1 | 1 | 2 | 0.750, 0.250 | 0.750, 0.250 | +0.050 (0.050), -0.050 (0.050) |"
    assert row in output
