"""JPEGs without image data are refused in one pass over their bytes."""

from pathlib import Path

import pytest
from PIL import Image

from finetune.data.images.decode import check_image

JPEG_START = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
"""Start of image and the first segment of a JPEG."""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (JPEG_START + bytes(4_000_000), "damaged JPEG (no image data)"),
        (JPEG_START + b"\xff" * 4_000_000, "damaged JPEG (no image data)"),
        (JPEG_START + b"\xff\xd9", "damaged JPEG (no image data)"),
        (JPEG_START, "truncated JPEG"),
        (JPEG_START[:-1], "truncated JPEG"),
        (JPEG_START + b"\xff", "truncated JPEG"),
        (JPEG_START + b"\xff\xda", "truncated JPEG"),
    ],
    ids=["zeros", "ones", "closed", "after segment", "in segment", "in marker", "in scan header"],
)
def test_check_image_jpeg_without_a_scan_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str
) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    # Pillow would look for the scan byte by byte
    monkeypatch.setattr(Image, "open", lambda *_args, **_options: pytest.fail("slow"))
    assert check_image(tmp_path / "x.jpg") == reason
