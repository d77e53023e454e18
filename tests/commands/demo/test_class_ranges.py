"""Classes of a transfer experiment, as written on the command line."""

import pytest

from finetune.commands.demo.class_ranges import parse_transfer
from finetune.errors import ConfigError

DIGITS = [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("text", "classes", "source", "target"),
    [
        ("0-2:5-7", DIGITS, ["0", "1", "2"], ["5", "6", "7"]),
        ("8-11:0-1", DIGITS, ["8", "9", "10", "11"], ["0", "1"]),  # by number, not by text
        ("0,3 , 4:1,9-10", DIGITS, ["0", "3", "4"], ["1", "9", "10"]),
        ("0,0-1:2-3", DIGITS, ["0", "1"], ["2", "3"]),
        ("t-shirt,hat:a-b,c", ["t-shirt", "hat", "a-b", "c", "a", "b"],
         ["t-shirt", "hat"], ["a-b", "c"]),
        ("digit 1-digit 2:digit 10,digit 3", ["digit 1", "digit 2", "digit 3", "digit 10"],
         ["digit 1", "digit 2"], ["digit 10", "digit 3"]),
        ("x-1-x-2:y,z", ["x-1", "x-2", "y", "z"], ["x-1", "x-2"], ["y", "z"]),
    ],
)  # fmt: skip
def test_parse_transfer_returns_classes_of_both_sides(
    text: str, classes: list[str], source: list[str], target: list[str]
) -> None:
    parsed = parse_transfer(text, classes)
    assert (list(parsed.source), list(parsed.target)) == (source, target)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0-4", "two lists"),
        ("0-4:", "two lists"),
        (":5-9", "two lists"),
        ("0-4:4-8", "'4' is in both"),
        ("0-4:5", "'5' is a single class"),
        ("4-0:5-9", "Write 0-4"),
        ("0-4:5-99", "no class '5-99'"),
        ("0-4:,", "no class ''"),
        ("zero:5-9", "no class 'zero'"),
    ],
)
def test_parse_transfer_rejects_what_is_no_transfer(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        parse_transfer(text, DIGITS)
