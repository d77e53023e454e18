"""Values of --reject."""

import pytest

from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import RejectOptions, parse_reject


def test_values() -> None:
    assert parse_reject(None) is None
    assert parse_reject(False) is None
    for alone in ("", True):
        assert parse_reject(alone) == RejectOptions(false_rejections=0.05)
    assert parse_reject("precision=1") == RejectOptions(precision=1.0)
    both = parse_reject(" precision=0.99, false_rejections=0.1 ")
    assert both == RejectOptions(0.99, 0.1)
    assert str(both) == "precision=0.99,false_rejections=0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.99", "0.99: 0.99 is no rule"),
        ("recall=0.9", "recall is no rule"),
        ("precision", "precision is no rule"),
        ("precision=99", "99 percent is precision=0.99"),
        ("precision=1.5", "of at most 1. Give"),
        ("precision=0", "no fraction above 0 and of at most 1"),
        ("precision=high", "no fraction"),
        ("false_rejections=1", "no fraction above 0 and below 1"),
        ("precision=0.9,precision=0.8", "given twice"),
    ],
)
def test_wrong_values(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_reject(text)
