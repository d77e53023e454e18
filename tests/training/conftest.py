"""Fixtures of the tests of training."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.networks import one_thread
from tests.runs import write_photos, write_weights


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="package")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 24 training and 15 validation images; never change it."""
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with photos and weights."""
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    return tmp_path
