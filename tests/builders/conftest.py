"""Fixtures of the tests of the builders."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the path of an importable module ``mine.py`` of custom code."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)
