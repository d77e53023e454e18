"""Fixtures of building."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file ``mine.py`` of the user's that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)
