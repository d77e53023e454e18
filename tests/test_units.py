"""Tests of ``finetune.units``: numbers as a person reads them."""

import pytest

from finetune.units import (
    format_bytes,
    format_count,
    format_duration,
    format_millions,
    format_percent,
    format_scientific,
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (1.6, "2 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"),
     (5400, "1.5 h"), (7261, "2.0 h")],
)  # fmt: skip
def test_format_duration_chooses_fitting_unit(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (360_000, "360 kB"), (9_960, "10 kB"),
     (999_600, "1.0 MB"), (14_200_000, "14 MB"), (1_240_000_000, "1.2 GB"),
     (21.4e9, "21 GB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_format_bytes_chooses_fitting_unit(num_bytes: float, expected: str) -> None:
    assert format_bytes(num_bytes) == expected


def test_format_percent_rounds_to_decimals() -> None:
    assert format_percent(0.8738) == "87.4%"
    assert format_percent(1) == "100.0%"
    assert format_percent(0.02, decimals=0) == "2%"


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "image", "1 image"), (1200, "image", "1,200 images"), (2, "class", "2 classes"),
        (2, "epoch", "2 epochs"), (0, "crop", "0 crops"), (12_345, "", "12,345"),
    ],
)  # fmt: skip
def test_format_count_uses_plural_unless_one(count: int, noun: str, expected: str) -> None:
    assert format_count(count, noun) == expected


def test_format_millions_shortens_large_numbers() -> None:
    assert format_millions(1539) == "1,539"
    assert format_millions(11_177_538) == "11.2 M"


@pytest.mark.parametrize(
    ("value", "expected"), [(1e-6, "1e-6"), (0.001, "0.001"), (2.1e-5, "2.1e-5"), (3e10, "3e+10")]
)
def test_format_scientific_does_not_pad_exponent(value: float, expected: str) -> None:
    assert format_scientific(value) == expected
