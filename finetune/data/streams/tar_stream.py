"""Images in tar files, such as the shards of a WebDataset."""

import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from finetune.data.images.formats import IMAGE_SUFFIXES
from finetune.data.streams.checked_tar import iterate_members
from finetune.data.streams.stream_image import ListDigest, StreamImage
from finetune.errors import DataError
from finetune.system.given_paths import is_folder

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, LZMAError)
_MAX_BYTES = 400_000_000
"""Size of a file above which it is no image."""


class TarStream:
    """Images in tar files: the members whose names end as those of images do.

    A sample of a WebDataset is several members that share a name up to the first dot. Its images
    have a row each, named by the tar file and the member; labels and other members are passed over.

    Args:
        files: Tar files.
        description: What the user gave, for messages.
    """

    def __init__(self, files: Sequence[Path], description: str) -> None:
        self.files = files
        self.description = description
        self.num_containers = len(files)

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images, file by file; a damaged file yields an image with the reason.

        Raises:
            DataError: No member is an image.
        """
        num_images = 0
        for number, file in enumerate(self.files):
            if selects is not None and not selects(number):
                num_images += 1
                continue
            try:
                with file.open("rb") as stream:
                    for image in read_tar(stream, str(file), number):
                        num_images += 1
                        yield image
            except OSError as error:
                num_images += 1
                reason = f"not readable ({error.strerror or error})"
                yield StreamImage(str(file), reason=reason, container=number, is_io_error=True)
        if not num_images:
            raise DataError(
                f"{self.description} contains no image: no member's name ends as that of an image "
                f"(.jpg, .png, .webp …). Check the path."
            )

    def count(self) -> int | None:
        """Return None: the members would have to be read."""
        return None

    def compute_fingerprint(self) -> str:
        """Return a digest of the names, sizes and times of the tar files."""
        digest = ListDigest()
        for file in self.files:
            state = file.stat()
            digest.add(file, state.st_size, state.st_mtime_ns)
        return digest.compute()


def read_tar(stream: io.BufferedReader, name: str, container: int | None) -> Iterator[StreamImage]:
    """Yield the images of a tar file in the order of its members.

    A link has no content in a file that is read once, and is yielded with that reason.

    Args:
        stream: Tar file, compressed or not, which may be a pipe.
        name: Name of the tar file in predictions.
        container: Number of the tar file.
    """
    num_images = 0
    try:
        for tar, member in iterate_members(stream):
            is_link = member.islnk() or member.issym()
            if not (member.isfile() or is_link) or not _is_image_name(member.name):
                continue
            shown = _make_printable(f"{name}/{member.name.removeprefix('./')}")
            reason = _explain_link(member) if is_link else None
            if member.size > _MAX_BYTES:
                reason = "too large: more than 400 MB"
            if reason is not None:
                yield StreamImage(shown, reason=reason, container=container)
                continue
            opened = tar.extractfile(member)
            assert opened is not None, "a regular file"
            data = opened.read()
            if len(data) < member.size:
                raise EOFError("unexpected end of data")
            num_images += 1
            root = _make_printable(name)
            yield StreamImage(shown, data=data, container=container, root=root)
    except _ERRORS as error:
        is_io_error = isinstance(error, OSError) and error.errno is not None
        detail = " ".join(str(error).split()) or type(error).__name__
        found = "not readable" if is_io_error else "damaged or incomplete tar file"
        yield StreamImage(
            name,
            reason=f"{found} ({detail}); {num_images} images before that",
            container=container,
            is_io_error=is_io_error,
        )


def is_tar_path(path: Path) -> bool:
    """Return whether a path, or a pattern such as ``{000..012}.tar``, is that of tar files."""
    return path.name.lower().endswith(TAR_SUFFIXES) and not is_folder(path)


def expand_braces(text: str) -> list[str]:
    """Return the texts that braces stand for, as in ``{000..012}`` and ``{train,val}``."""
    parts = re.split(r"(\{[^{}]*\})", text)
    return ["".join(chosen) for chosen in product(*map(_list_choices, parts))]


def _list_choices(part: str) -> list[str]:
    if match := _RANGE.fullmatch(part):
        first, last = match.groups()
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        return [f"{n:0{width}}" for n in range(int(first), int(last) + step, step)]
    if match := _CHOICE.fullmatch(part):
        return match[1].split(",")
    return [part]


def _explain_link(member: tarfile.TarInfo) -> str:
    kind, option = "a hard link", "--hard-dereference"
    if member.issym():
        kind, option = "a symbolic link", "--dereference"
    target = _make_printable(member.linkname.removeprefix("./"))
    return f"{kind} to {target} in the tar; write it with tar {option}"


def _make_printable(text: str) -> str:
    return text if text.isprintable() else text.encode(errors="backslashreplace").decode()


def _is_image_name(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
