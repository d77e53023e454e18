"""Image formats that are read, and the content of other files by their first bytes."""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, features

NUM_START_BYTES = 512
"""Length of the start of a file by which its content is identified."""

HEIC_PROPOSAL = "pip install 'finetune-vision[heic]'"
"""Command that makes HEIC files readable."""

HEIC = "HEIC (iPhone photo)"


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Image format that is read.

    Attributes:
        name: Name in messages.
        plugin: Name of Pillow's plugin, which alone may open such a file.
        suffixes: File name suffixes, lower case.
        bytes_per_pixel: Most memory per pixel that its decoder needs, measured.
    """

    name: str
    plugin: str
    suffixes: tuple[str, ...]
    bytes_per_pixel: int = 5


FORMATS = (
    ImageFormat("AVIF", "AVIF", (".avif",), 16),
    ImageFormat("BMP", "BMP", (".bmp", ".dib")),
    ImageFormat("GIF", "GIF", (".gif",)),
    ImageFormat(HEIC, "HEIF", (".heic", ".heif", ".hif"), 16),
    ImageFormat("JPEG", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    ImageFormat("JPEG 2000", "JPEG2000", (".jp2", ".j2k", ".jpf", ".jpx"), 25),
    ImageFormat("PNG", "PNG", (".png", ".apng")),
    ImageFormat("PNM", "PPM", (".pbm", ".pgm", ".pnm", ".ppm")),
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff")),
    ImageFormat("WebP", "WEBP", (".webp",), 16),
)
"""The one list of formats, for folders and single files of every command."""

IMAGE_SUFFIXES = frozenset(suffix for entry in FORMATS for suffix in entry.suffixes)
"""Suffixes of the files in a folder that are taken for images; their content decides the format."""

_FORMAT_OF_NAME = {entry.name: entry for entry in FORMATS}
_FORMAT_OF_PLUGIN = {entry.plugin: entry for entry in FORMATS} | {
    "MPO": _FORMAT_OF_NAME["JPEG"],
    "DIB": _FORMAT_OF_NAME["BMP"],
}

_SIGNATURES = (
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (8, b"CR\x02\0", "camera raw file (CR2)"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    *((0, f"P{digit}{blank}".encode(), "PNM") for digit in "123456" for blank in " \n\r\t#"),
    (0, b"P7\n", "PAM"),
    (0, b"Pf", "PNM"),
    (0, b"PF\n", "PFM"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop file (PSD)"),
    (0, b"gimp xcf", "GIMP file (XCF)"),
    (0, b"\0\0\1\0", "icon (ICO)"),
    (0, b"DDS ", "DDS texture"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"FUJIFILMCCD-RAW", "camera raw file (RAF)"),
    (0, b"IIRO", "camera raw file (ORF)"),
    (0, b"IIU\0", "camera raw file (RW2)"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"qoif", "QOI"),
    (0, b"\0\x05\x16\x07", "macOS resource file (AppleDouble)"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
    (0, b"\x1aE\xdf\xa3", "video (Matroska)"),
    (8, b"AVI ", "video (AVI)"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"7z\xbc\xaf", "7z archive"),
    (0, b"Rar!", "RAR archive"),
)
_HEIF_BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1")
_REMEDIES = {
    "Git LFS pointer": "the image itself is not here; run git lfs pull",
    "macOS resource file (AppleDouble)": "not an image; remove it",
    "web page (HTML)": "a download that failed; get the image again",
}


def identify_content(start: bytes) -> str:
    """Return the name of a file's format by its first bytes; empty if they are unknown.

    It is the name of one of ``FORMATS``, or of content that is not read, such as "PDF".
    """
    if start[4:8] == b"ftyp":
        return _identify_iso_media(start)
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "web page (HTML)"
    if text.startswith((b"<svg", b"<?xml")):
        return "SVG" if b"<svg" in text else "XML"
    return ""


def find_format(name: str) -> ImageFormat | None:
    """Return the format of a name, or of the name of a plugin; None if it is not read."""
    return _FORMAT_OF_NAME.get(name) or _FORMAT_OF_PLUGIN.get(name)


def describe_unsupported(name: str) -> str:
    """Return the reason for which content with a known signature is not read."""
    if name == HEIC:
        return f"{HEIC}: needs pillow-heif, which is not installed: {HEIC_PROPOSAL}"
    if name == "AVIF":
        return "AVIF: the installed Pillow is built without it; install Pillow from PyPI"
    remedy = _REMEDIES.get(name, "not a format that is read; convert it to JPEG or PNG")
    return f"{name}: {remedy}"


@lru_cache
def list_plugins() -> tuple[str, ...]:
    """Return the plugins of Pillow that may open files; HEIC is one if pillow-heif is installed.

    No other is ever tried: Pillow's own list would hand PostScript to Ghostscript.
    """
    plugins = [entry.plugin for entry in FORMATS if entry.plugin != "HEIF"]
    if not features.check("avif"):
        plugins.remove("AVIF")
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
        plugins.append("HEIF")
    Image.init()
    return tuple(plugins)


def read_start(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(NUM_START_BYTES)


def _identify_iso_media(start: bytes) -> str:
    """Return the format of a file of boxes (ISO/IEC 14496-12) by its brands."""
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, length, 4))]
    names = [brand.decode("latin-1") for brand in brands]
    if any(name in ("avif", "avis") for name in names):
        return "AVIF"
    if any(name in _HEIF_BRANDS for name in names):
        return HEIC
    return "camera raw file (CR3)" if names[0] == "crx " else "video (MP4)"
