"""One verdict, one reason and the same pixels of a file in all ways of reading it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from finetune.audit.fingerprint import compute_fingerprint
from finetune.data.images.decode import check_image, decode_image, open_image
from finetune.errors import DataError
from finetune.types import ReadOptions
from tests.support.helpers import ROOT, create_smooth_image
from tests.support.image_kinds import ENCODERS, HEIGHT, KINDS, WIDTH


def collect_verdicts(file: Path) -> set[str | None]:
    """Return the different reasons for which a file cannot be used, None for none."""

    def crop() -> object:
        image = open_image(file)
        return image.crop((0, 0, image.width, image.height), (8, 8))

    verdicts = {check_image(file)}
    for read in (lambda: decode_image(file), crop, lambda: compute_fingerprint(file)):
        try:
            read()
            verdicts.add(None)
        except DataError as error:
            verdicts.add(str(error))
    return verdicts


@pytest.mark.parametrize("name", KINDS)
def test_file_of_any_kind_has_one_verdict_and_the_right_pixels(tmp_path: Path, name: str) -> None:
    kind, file = KINDS[name], tmp_path / name
    file.write_bytes(kind.data)
    verdicts = collect_verdicts(file)
    if kind.pixels is None:
        (reason,) = verdicts
        assert re.search(kind.reason, reason or "")
        return
    assert verdicts == {None}
    pixels = np.asarray(decode_image(file))
    np.testing.assert_allclose(pixels.astype(int), kind.pixels, atol=1)
    image = open_image(file)
    assert (image.height, image.width) == kind.pixels.shape[:2]
    Image.fromarray(kind.pixels).save(tmp_path / "right.png")
    right, fingerprint = (compute_fingerprint(p) for p in (tmp_path / "right.png", file))
    for field in ("width", "height", "dark", "bright", "contrast"):
        assert fingerprint[field] == pytest.approx(right[field], abs=0.01), field
    difference = fingerprint["thumbnail"].astype(int) - right["thumbnail"]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("suffix", ENCODERS)
def test_damaged_file_has_one_verdict_and_prints_nothing(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(len(suffix))
    data = ENCODERS[suffix](create_smooth_image(width=WIDTH * 2, height=HEIGHT * 2))
    for number in range(24):
        damaged = bytearray(data)
        if number % 2:
            del damaged[int(random.integers(1, len(data))) :]
        else:
            for place in random.integers(12, len(data), 1 + number // 4):
                damaged[place] ^= int(random.integers(1, 256))
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(damaged)
        verdicts = collect_verdicts(file)
        assert len(verdicts) == 1, (file.name, verdicts)
        (reason,) = verdicts
        assert reason is None or not reason.startswith("not an image"), reason
    assert capfd.readouterr() == ("", "")


def test_truncated_file_is_said_to_be_truncated(tmp_path: Path) -> None:
    names = {"bmp": "BMP", "jpg": "JPEG", "png": "PNG", "ppm": "PNM", "lzw.tif": "TIFF"}
    for suffix, name in names.items():
        data = ENCODERS[suffix](create_smooth_image(width=WIDTH, height=HEIGHT))
        file = tmp_path / f"x.{suffix}"
        for end in (len(data) // 3, len(data) // 2, len(data) * 3 // 4):
            file.write_bytes(data[:end])
            assert (check_image(file) or "").startswith(f"truncated {name}"), (suffix, end)


def test_postscript_is_never_handed_to_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    monkeypatch.setattr(EpsImagePlugin, "EpsImageFile", lambda *_: pytest.fail("opened as EPS"))
    for number, start in enumerate((b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + bytes(26))):
        file = tmp_path / f"{number}.png"
        file.write_bytes(start + b"%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
        assert collect_verdicts(file) == {
            "PostScript: not a format that is read; convert it to JPEG or PNG"
        }


def test_pillow_that_warns_of_a_file_is_silent_in_another_process(tmp_path: Path) -> None:
    """Exif that ends too early, and a TIFF of many bands: Pillow warns, and logs."""
    image = create_smooth_image(width=WIDTH, height=HEIGHT)
    exif = Image.Exif()
    exif[0x010E] = "a description that is cut"
    image.save(tmp_path / "exif.jpg", exif=exif.tobytes()[:-12])
    (tmp_path / "bands.tif").write_bytes(KINDS["bands.tif"].data)
    data = bytearray(ENCODERS["lzw.tif"](image))
    data[60:90] = bytes(30)
    (tmp_path / "damaged.tif").write_bytes(data)
    script = (
        "import sys; from pathlib import Path\n"
        "from finetune.data.images.validate import check_files\n"
        "print(*check_files(sorted(Path(sys.argv[1]).iterdir())), sep='\\n')"
    )
    process = subprocess.run(
        [sys.executable, "-W", "default", "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    reasons = process.stdout.splitlines()
    assert len(reasons) == 3
    assert reasons[2] == "None"


def test_check_image_limit_of_pixels_is_the_same_for_all_formats(tmp_path: Path) -> None:
    image = create_smooth_image(width=WIDTH, height=HEIGHT)
    for suffix, encode in ENCODERS.items():
        file = tmp_path / f"x.{suffix}"
        file.write_bytes(encode(image))
        assert check_image(file, options=ReadOptions(max_pixels=HEIGHT * WIDTH)) is None
        reason = check_image(file, options=ReadOptions(max_pixels=HEIGHT * WIDTH - 1))
        assert (reason or "").startswith(f"too large: {WIDTH}x{HEIGHT} is 0 megapixels"), suffix
