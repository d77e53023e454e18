"""Fixtures that several floors share."""

from pathlib import Path

import pytest

from tests.helpers import write_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 6 cats and 4 dogs, 12 x 10 pixels each."""
    names = [f"cat/{i}.png" for i in range(6)] + [f"dog/{i}.png" for i in range(4)]
    return write_images(tmp_path / "photos", *names)
