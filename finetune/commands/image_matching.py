"""Identity of images: which images of a folder or CSV are those of a run, by path and content."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.audit.fingerprint import compute_digest
from finetune.data.images.validate import map_in_threads
from finetune.data.manifest import Manifest
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count


@dataclass(frozen=True, slots=True)
class Match:
    """Relation of an image to the images of a run.

    Attributes:
        original: Image of the run's manifest that it is; None for a new image.
        has_changed: Whether the file has another content than that of the run.
        is_copy_of_training: Whether a new image has the content of a training image of the run.
        namesake: Image of the run that has the same name as a new image, but for the suffix, and
            another content: the new image may be an edited copy of it.
    """

    original: Sample | None = None
    has_changed: bool = False
    is_copy_of_training: bool = False
    namesake: Sample | None = None

    @property
    def is_training_image(self) -> bool:
        """Whether the model was trained on the image."""
        if self.original is None:
            return self.is_copy_of_training
        return self.original.split is Split.TRAIN


def match_images(
    root: Path, samples: Sequence[Sample], manifest: Manifest, *, reporter: Reporter
) -> list[Match]:
    """Return the relation of each image to the images of a run.

    An image is that of the run with the same path, or whose path relative to the run's data ends
    its own, if its content is the same; or else the one with the same content under another path.
    The content of training images under unchanged paths is compared only if that of others
    differs, so that no dataset is read in full without need. Manifests of earlier releases have no
    digests: their images are identified by path alone.

    Args:
        root: Folder that the paths of the samples are relative to.
        samples: N images.
        manifest: Images of the run.
        reporter: Receives the progress, file by file.
    """
    folder = os.path.realpath(root)
    files = [_normalize(folder, sample) for sample in samples]
    originals, in_place = _match_paths(files, samples, manifest)
    if not has_digests(manifest):
        return [Match(originals.get(row)) for row in range(len(files))]
    digests = _compute_digests(files, originals, in_place, manifest, reporter)
    return _match_contents(files, originals, in_place, digests, manifest)


def report_training_images(
    matches: Sequence[Match], reporter: Reporter, *, model: str = "the model"
) -> int:
    """Return the number of images that the model was trained on, and warn of them.

    Where most images are those of the run or have their names, images with the names of training
    images are told too: they may be edited copies, whose metrics are optimistic as well.

    Args:
        matches: Relation of each evaluated image to the run of the model.
        reporter: Receives the warnings.
        model: Name of the model in them.
    """
    images = format_count(len(matches), "image")
    num_trained_on = sum(match.is_training_image for match in matches)
    if num_trained_on:
        reporter.warn(
            f"{num_trained_on:,} of {images} "
            f"{'is a training image' if num_trained_on == 1 else 'are training images'} of "
            f"{model}: the metrics are optimistic"
        )
    names = [match.namesake for match in matches if match.namesake is not None]
    num_originals = sum(match.original is not None for match in matches)
    num_suspects = sum(sample.split is Split.TRAIN for sample in names)
    if num_suspects and 2 * (len(names) + num_originals) > len(matches):
        reporter.warn(
            f"{len(names):,} of {images} {'has' if len(names) == 1 else 'have'} the name of an "
            f"image of the run but another content, {num_suspects:,} of them the name of a "
            f"training image: if they are edited copies, the metrics are optimistic"
        )
    return num_trained_on


def has_digests(manifest: Manifest) -> bool:
    """Return whether a manifest has the digests of its images; those of version 0.1 have none."""
    return any(sample.digest for sample in manifest.samples)


def _match_paths(
    files: Sequence[str], samples: Sequence[Sample], manifest: Manifest
) -> tuple[dict[int, Sample], set[int]]:
    """Return by row the image of the run with the same path, and the rows of the same files."""
    folder = os.path.realpath(manifest.root)
    run_files = {_normalize(folder, sample): sample for sample in manifest.samples}
    originals = {row: run_files[file] for row, file in enumerate(files) if file in run_files}
    in_place = set(originals)
    taken = {sample.path for sample in originals.values()}
    elsewhere = {sample.path: sample for sample in manifest.samples if sample.path not in taken}
    rows_of: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        if row not in in_place:
            paths = (samples[row].path, *_iter_suffixes(file))
            path = next((path for path in paths if path in elsewhere), None)
            if path is not None:
                rows_of.setdefault(path, []).append(row)
    for path, rows in rows_of.items():
        same = [row for row in rows if samples[row].path == path]
        if len(same or rows) == 1:  # else the path alone does not decide
            originals[(same or rows)[0]] = elsewhere[path]
    return originals, in_place


def _compute_digests(
    files: Sequence[str],
    originals: dict[int, Sample],
    in_place: set[int],
    manifest: Manifest,
    reporter: Reporter,
) -> dict[int, str]:
    """Return the digests of the files, by row, that decide which images they are."""
    known = {sample.digest for sample in manifest.samples}
    moved = originals.keys() - in_place
    digests: dict[int, str] = {}

    def compute(rows: Iterable[int]) -> None:
        pending = sorted(set(rows) - digests.keys())
        if not pending:
            return
        reporter.start("comparing with the run", len(pending))
        paths = (Path(files[row]) for row in pending)
        for row, digest in zip(pending, map_in_threads(compute_digest, paths), strict=True):
            digests[row] = digest
            reporter.advance()
        reporter.finish()

    all_rows = range(len(files))
    compute(
        row for row in all_rows if row not in originals or originals[row].split is not Split.TRAIN
    )
    different = [
        row for row in digests if row in originals and _differs(digests[row], originals[row])
    ]
    is_unchecked = bool(moved) and not moved & digests.keys()
    if is_unchecked or any(row in moved or digests[row] in known for row in different):
        compute(all_rows)  # names were exchanged, or belong to other images
    return digests


def _match_contents(
    files: Sequence[str],
    originals: dict[int, Sample],
    in_place: set[int],
    digests: dict[int, str],
    manifest: Manifest,
) -> list[Match]:
    """Return the matches by path that contents confirm, and those of the others by content."""
    different = {
        row for row in originals if row in digests and _differs(digests[row], originals[row])
    }
    checked = [row for row in originals if row in digests and row not in in_place]
    # the names of another dataset may be the same; then its contents are not
    is_other_data = 2 * len(different.intersection(checked)) > len(checked)
    matches = {row: Match(original) for row, original in originals.items() if row not in different}
    taken = {match.original.path for match in matches.values() if match.original is not None}
    by_digest: dict[str, list[Sample]] = {}
    for sample in manifest.samples:
        if sample.digest:
            by_digest.setdefault(sample.digest, []).append(sample)
    for row, file in enumerate(files):
        if row in matches:
            continue
        same_content = by_digest.get(digests[row], [])
        free = [sample for sample in same_content if sample.path not in taken]
        if free:
            original = min(free, key=lambda sample: _rank_candidate(sample, file))
            matches[row] = Match(original)
            taken.add(original.path)
        else:
            trained = any(sample.split is Split.TRAIN for sample in same_content)
            matches[row] = Match(is_copy_of_training=trained)
    for row in sorted(different):
        original = originals[row]
        is_same_image = row in in_place or not is_other_data
        if matches[row] == Match() and is_same_image and original.path not in taken:
            matches[row] = Match(original, has_changed=True)
            taken.add(original.path)
    return _add_namesakes([matches[row] for row in range(len(files))], files, manifest)


def _add_namesakes(matches: list[Match], files: Sequence[str], manifest: Manifest) -> list[Match]:
    """Return the matches, with an image of the run of the same name for images of no known content.

    Names are paths relative to the data of the run, without the suffix, as a new format changes it.
    """
    taken = {match.original.path for match in matches if match.original is not None}
    by_name: dict[str, list[Sample]] = {}
    for sample in manifest.samples:
        if sample.path not in taken:
            by_name.setdefault(_remove_suffix(sample.path), []).append(sample)
    rows_of: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        if matches[row] == Match():
            names = map(_remove_suffix, _iter_suffixes(file))
            name = next((name for name in names if name in by_name), None)
            if name is not None:
                rows_of.setdefault(name, []).append(row)
    for name, rows in rows_of.items():
        if len(rows) == len(by_name[name]):  # else the name belongs to several images
            for row, sample in zip(rows, by_name[name], strict=True):
                matches[row] = Match(namesake=sample)
    return matches


def _normalize(folder: str, sample: Sample) -> str:
    """Return the absolute path of an image without ".."; links in it are not resolved."""
    return os.path.normpath(os.path.join(folder, sample.path))  # noqa: PTH118


def _iter_suffixes(file: str) -> Iterator[str]:
    """Yield the ends of a path that begin with a name, the longest first."""
    start = file.find("/")
    while start >= 0:
        yield file[start + 1 :]
        start = file.find("/", start + 1)


def _remove_suffix(path: str) -> str:
    """Return a path without the suffix of its file name."""
    return os.path.splitext(path)[0]  # noqa: PTH122


def _differs(digest: str, original: Sample) -> bool:
    """Return whether a content is known to be another than that of an image of the run."""
    return bool(digest and original.digest) and digest != original.digest


def _rank_candidate(sample: Sample, file: str) -> tuple[bool, bool]:
    """Return the sort key of images with one content: equal file names, then training images."""
    has_same_name = sample.path.rpartition("/")[2] == file.rpartition("/")[2]
    return not has_same_name, sample.split is not Split.TRAIN
