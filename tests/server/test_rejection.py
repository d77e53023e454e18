"""Tests of rejections: limits within the reasons of images are read without punctuation."""

import pytest

from finetune.errors import DataError
from finetune.server.intake.rejection import reject_image


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("data.max_megapixels=50", "50"),
        ("data.max_megapixels=50.", "50"),
        ("data.max_megapixels=0.25. Restore it", "0.25"),
        ("data.max_megapixels=1e+03; retry", "90"),
        ("Pillow's limit of 178.9.", "90"),
    ],
)
def test_limit_within_a_reason_is_the_smaller_one(text: str, limit: str) -> None:
    reason = f"too large: 9x9 is 3600 megapixels, over {text}"
    rejection = reject_image(DataError(reason), b"", max_pixels=90_000_000)
    assert (rejection.status, rejection.reason) == (413, "too_many_pixels")
    expected = f"Too large: 9x9 is 3600 megapixels; at most {limit} are accepted."
    assert rejection.detail == expected
