"""Files that a command leaves out, or whose values do not suit the model: their warnings."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from finetune.data.file_listing import suggest_file
from finetune.data.images.bit_depth import DatasetBits
from finetune.data.images.formats import HEIC, HEIC_PROPOSAL
from finetune.data.multi_label.multi_hot import count_labels
from finetune.data.scan import Scan
from finetune.errors import DataError
from finetune.types import PixelRange, RejectedFile, Reporter, Sample
from finetune.units import format_count


def report_rejected(
    scanned: Scan,
    readable: Sequence[Sample],
    unreadable: Sequence[RejectedFile],
    reporter: Reporter,
    *,
    fail_on_lost_class: bool = True,
) -> list[RejectedFile]:
    """Return all rejected files after one warning about them.

    Args:
        scanned: Images and rejected files of a folder or CSV.
        readable: Images that can be read.
        unreadable: Those that cannot.
        reporter: Receives the warning.
        fail_on_lost_class: Whether a class without a readable image is an error.

    Raises:
        DataError: A class has no readable image.
    """
    rejected = [*scanned.rejected, *unreadable]
    if rejected:
        files = format_count(len(rejected), "file")
        reporter.warn(f"{files} left out: {summarise_rejected(rejected)}")
    propose_heic(rejected, reporter)
    lost = count_labels(scanned.samples).keys() - count_labels(readable).keys()
    if lost and fail_on_lost_class:
        name = min(lost)
        names_of = {sample.path: sample.class_names for sample in scanned.samples}
        example = next(entry for entry in unreadable if name in names_of[entry.path])
        is_missing = not (scanned.root / example.path).exists()
        fitting = suggest_file(scanned.root, example.path) if is_missing else None
        remedy = "Repair the files or remove the class."
        if is_missing:
            remedy = f"{fitting} exists. Correct the paths." if fitting else "Correct the paths."
        raise DataError(
            f"No image of class '{name}' can be read (such as {example.path}: {example.reason}). "
            f"{remedy}"
        )
    return rejected


def report_unreadable(
    samples: Sequence[Sample], root: Path, reasons: Mapping[int, str], reporter: Reporter
) -> tuple[list[int], list[RejectedFile]]:
    """Return the rows of the images that were read, and the other files after a warning.

    Args:
        samples: Images that were readable when they were listed.
        root: Folder to which their paths refer.
        reasons: Reasons of those that could not be read any more, by their rows.
        reporter: Receives the warning.

    Raises:
        DataError: None could be read.
    """
    rejected = [RejectedFile(samples[row].path, reason) for row, reason in reasons.items()]
    summary = summarise_rejected(rejected)
    kept = [row for row in range(len(samples)) if row not in reasons]
    if not kept:
        raise DataError(f"No image in {root} can be read any more: {summary}.")
    reporter.warn(f"{format_count(len(rejected), 'file')} left out: {summary}")
    return kept, rejected


class RangeCheck:
    """Check that the values of images of more than 8 bits suit the range of a model.

    Args:
        pixel_range: Range of the model; None for the whole range of each file's bits.
    """

    def __init__(self, pixel_range: PixelRange | None) -> None:
        self._range = pixel_range
        self._lock = threading.Lock()
        self._num_clipped = 0
        self._clipped_example: Path | None = None
        self._bits: DatasetBits | None = None
        self._example: Path | None = None

    def add(self, path: Path, max_value: int, is_clipped: bool) -> None:
        """Take an image into account, from any thread; see ``OnValues``."""
        with self._lock:
            if is_clipped:
                self._num_clipped += 1
                self._clipped_example = min(self._clipped_example or path, path)
            if max_value:
                so_far = self._bits or DatasetBits(0, 0)
                largest = max(so_far.max_value, max_value)
                self._bits = DatasetBits(so_far.num_images + 1, largest)
                self._example = min(self._example or path, path)

    def report(self, reporter: Reporter) -> None:
        """Warn of images above the range, and of those that fill a small part of 16 bits."""
        if self._num_clipped and self._range is not None:
            images = format_count(self._num_clipped, "image")
            reporter.warn(
                f"{images} with values above {self._range.high:,.9g}, which is white for the model "
                f"(data.pixel_range={self._range}): higher values are clipped "
                f"(such as {self._clipped_example})"
            )
        bits = self._bits
        if self._range is None and bits is not None and bits.pixel_range is not None:
            images = format_count(bits.num_images, "image")
            reporter.warn(
                f"{images} of 16 bits with values up to {bits.max_value:,} (such as "
                f"{self._example}): the model reads 0:65535, in which they are dark. If 65535 is "
                f"not white in these files, train with data.pixel_range={bits.pixel_range} or "
                f"convert them to 8 bits"
            )


class RejectionTally:
    """Counts of rejected files by their reasons, with one example each."""

    def __init__(self) -> None:
        self.count = 0
        self._counts: Counter[str] = Counter()
        self._example_of: dict[str, str] = {}
        self._num_heic = 0

    def add(self, entry: RejectedFile) -> None:
        """Count a file."""
        kind = _get_kind(entry.reason)
        self.count += 1
        self._counts[kind] += 1
        self._example_of.setdefault(kind, entry.path)
        self._num_heic += entry.reason.startswith(f"{HEIC}: needs")

    def summarise(self) -> str:
        """Return the four most frequent reasons with their counts and one example each."""
        counts = self._counts.most_common()
        shown = [
            f"{reason} ({self._example_of[reason]})"
            if count == 1
            else f"{reason} ({count:,}, such as {self._example_of[reason]})"
            for reason, count in counts[:4]
        ]
        if rest := sum(count for _, count in counts[4:]):
            shown.append(f"other reasons ({rest:,})")
        return "; ".join(shown)

    def propose_heic(self, reporter: Reporter) -> None:
        """Say how HEIC files are read, if there are any."""
        if self._num_heic:
            files = format_count(self._num_heic, f"{HEIC} file")
            reporter.note(f"{files}: to read them, {HEIC_PROPOSAL}.")


def propose_heic(rejected: Iterable[RejectedFile], reporter: Reporter) -> None:
    """Say how HEIC files are read, if there are any among the rejected ones."""
    _tally(rejected).propose_heic(reporter)


def summarise_rejected(rejected: Iterable[RejectedFile]) -> str:
    """Return the four most frequent reasons with their counts and one example each."""
    return _tally(rejected).summarise()


def _tally(rejected: Iterable[RejectedFile]) -> RejectionTally:
    tally = RejectionTally()
    for entry in rejected:
        tally.add(entry)
    return tally


def _get_kind(reason: str) -> str:
    """Return a reason without what differs from file to file: its details."""
    if reason.startswith(HEIC):
        return HEIC
    return reason.partition(" (")[0].partition(":")[0]
