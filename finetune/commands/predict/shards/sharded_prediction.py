"""Prediction of any number of images in parts, by one process of several."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.ensembles.model_digest import compute_model_digest
from finetune.commands.predict.predict_options import PredictOptions
from finetune.commands.predict.prediction_job import PredictionJob
from finetune.commands.predict.row_writers import check_pyarrow
from finetune.commands.predict.shards.part_files import PartFiles, Unit
from finetune.commands.predict.shards.part_manifest import PartManifest, open_folder
from finetune.commands.predict.shards.work_share import ShardRule, WorkShare, detect_share
from finetune.data.streams.stream_image import StreamImage
from finetune.errors import DataError
from finetune.types import Reporter
from finetune.units import format_count

DEFAULT_PART_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class ShardsResult:
    """Images and parts that a process has predicted of all, and those that are missing.

    Attributes:
        folder: Folder of the parts.
        process: Number of this process, from 0.
        num_processes: Number of processes that share the work.
        num_images: Number of images that this process has predicted.
        num_unreadable: Number of images that it could not read.
        num_written: Number of parts that it has written.
        num_found: Number of its parts that were there before.
        num_missing: Number of parts of other processes that are not there yet; None if it is not
            known.
        rejection: Rules, thresholds and the number of answers that this process has rejected, as
            JSON values; None without ``--reject``.
        notes: Sentences on them.
    """

    folder: Path
    process: int
    num_processes: int
    num_images: int
    num_unreadable: int
    num_written: int
    num_found: int
    num_missing: int | None
    rejection: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether all parts of all processes are there."""
        return self.num_missing == 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "output": str(self.folder),
            "process": self.process,
            "num_processes": self.num_processes,
            "num_images": self.num_images,
            "num_unreadable": self.num_unreadable,
            "num_parts_written": self.num_written,
            "num_parts_found": self.num_found,
            "num_parts_missing": self.num_missing,
            "complete": self.is_complete,
            "rejection": None if self.rejection is None else dict(self.rejection),
        }

    def describe(self) -> str:
        """Return what was done, and what is left to others."""
        images = format_count(self.num_images, "prediction")
        parts = f"{images} in {format_count(self.num_written, 'new part')} of {self.folder}"
        if self.num_found:
            parts += f"; {format_count(self.num_found, 'part')} of an earlier start kept"
        if not self.is_complete:
            left = "parts" if self.num_missing is None else format_count(self.num_missing, "part")
            return f"{parts}; other processes have {left} left."
        return f"{parts}; complete."


def predict_shards(
    models: Sequence[Path],
    inputs: Sequence[Path],
    folder: Path,
    *,
    lists: Sequence[Path] = (),
    options: PredictOptions,
    part_size: int | None = None,
    share: WorkShare | None = None,
    reporter: Reporter,
) -> ShardsResult:
    """Predict the share of this process, and write Parquet files of some images each.

    A part that is there is not predicted again, so that a start after a stop does only what is
    missing, with any number of processes. Parts appear complete or not at all.

    Args:
        models: Models, whose probabilities are averaged.
        inputs: Images, see ``open_stream``.
        folder: Folder of the parts.
        lists: Text files that list images.
        options: Settings of the prediction.
        part_size: Number of images of a part; None for that of the folder, else 10,000.
        share: Share of this process; None for that of the launch.
        reporter: Receiver of progress and notes.

    Raises:
        DataError: A tar or Parquet file could not be read because of a disk, a network or a
            permission. The parts of images after it are missing, and a rerun predicts them.
        RunFolderError: The folder holds parts of another prediction; the message says what differs.
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    check_pyarrow()
    share = share or detect_share()
    job = PredictionJob(
        models, inputs, lists=lists, options=options, local_rank=share.local_rank,
        local_processes=share.local_processes, reporter=reporter,
    )  # fmt: skip
    job.form.list_columns(can_be_lines=False)  # whose names may not be distinct
    count = job.stream.count()
    manifest = open_folder(
        folder,
        PartManifest(
            compute_model_digest(job.bundle),
            tuple(map(str, models)),
            options.describe_model(),
            job.stream.compute_fingerprint(),
            tuple(map(str, (*inputs, *lists))),
            count,
            share.num_processes,
            part_size or DEFAULT_PART_SIZE,
        ),
        has_part_size=part_size is not None,
    )
    rule = ShardRule(manifest.num_shards, job.stream.num_containers)
    with PartFiles(folder, job.form, manifest.part_size) as files:
        work = _Work(job, files, rule, share, manifest.part_size)
        for rows in job.iterate(
            work.iterate(), total=0 if count is None else count // share.num_processes
        ):
            for row in rows:
                files.write(work.pending.popleft(), row)
    result = work.finish()
    work.check_read()
    return result


class _Work:
    """Parts of one process, and the images that belong to them.

    Attributes:
        pending: Part of each image that was yielded and not predicted yet.
    """

    def __init__(
        self,
        job: PredictionJob,
        files: PartFiles,
        rule: ShardRule,
        share: WorkShare,
        part_size: int,
    ) -> None:
        self.pending: deque[Unit] = deque()
        self._job = job
        self._files = files
        self._rule = rule
        self._share = share
        self._part_size = part_size
        self._num_images: Counter[int] = Counter()
        self._is_done: dict[Unit, bool] = {}
        self._unread: dict[int, StreamImage] = {}

    def iterate(self) -> Iterator[StreamImage]:
        """Yield the images of the parts of this process that are not there yet.

        Raises:
            DataError: There is no image.
        """
        selects = self._select_container if self._rule.is_by_container else None
        current: dict[int, tuple[Unit, bool]] = {}
        for image in self._job.stream.iterate(selects):
            shard = self._rule.get_shard(image)
            if image.is_io_error:
                self._abandon_rest(image)
            if len(self._unread) == self._rule.num_shards:
                return
            if shard in self._unread:
                continue
            number = self._num_images[shard]
            self._num_images[shard] += 1
            if number % self._part_size == 0:
                unit = shard, number // self._part_size
                current[shard] = unit, self._takes(unit)
            unit, is_taken = current[shard]
            if is_taken:
                self.pending.append(unit)
                yield image

    def finish(self) -> ShardsResult:
        """Mark the shards whose parts are all there, and return what was done.

        Raises:
            DataError: There is no image at all.
        """
        missing, features = 0, self._job.features
        for shard in range(self._rule.num_shards):
            if self._files.get_marker(shard).exists():
                continue
            units = [
                (shard, part) for part in range(-(-self._num_images[shard] // self._part_size))
            ]
            is_known = not self._rule.is_by_container or self._owns_shard(shard)
            absent = sum(not self._files.has(unit) for unit in units)
            if shard in self._unread:
                absent = max(1, absent)
            if is_known and not absent:
                self._files.mark_complete(shard, self._num_images[shard])
            missing += absent if is_known else 1
        if not missing:
            self._files.remove_stale_temp_files()
        is_empty = not self._num_images and not self._unread
        if is_empty and self._share.is_alone and not self._rule.is_by_container:
            raise DataError(f"{self._job.stream.description} holds no image. Check the path.")
        return ShardsResult(
            self._files.folder,
            self._share.process,
            self._share.num_processes,
            self._job.num_predicted,
            self._job.tally.count,
            self._files.num_written,
            sum(self._is_done.values()),
            None if missing and self._rule.is_by_container else missing,
            None if features is None else features.to_json()["rejection"],
            () if features is None else tuple(features.describe(self._job.num_predicted)),
        )

    def check_read(self) -> None:
        """Check that no shard has ended early.

        Raises:
            DataError: One has, as a file of images could not be read.
        """
        unread = {image.name: image.reason for image in self._unread.values()}
        if unread:
            shown = "; ".join(f"{name}: {reason}" for name, reason in list(unread.items())[:3])
            more = f"; and {len(unread) - 3} more" if len(unread) > 3 else ""
            raise DataError(
                f"The predictions are not complete, as a file of images cannot be read, and those "
                f"after it wait for it ({shown}{more}). Complete parts are kept: make it readable, "
                f"and start the same command again."
            )

    def _abandon_rest(self, image: StreamImage) -> None:
        """Note that the images of a shard from here on are not known; without containers, of all.

        Nothing that is written may depend on the number of images of a file that may be read later.
        """
        shards = range(self._rule.num_shards)
        if self._rule.is_by_container:
            shards = range(shard := self._rule.get_shard(image), shard + 1)
        for shard in shards:
            self._unread.setdefault(shard, image)
            self._files.abandon((shard, self._num_images[shard] // self._part_size))

    def _takes(self, unit: Unit) -> bool:
        """Return whether this process writes a part; it is noted if it is there."""
        shard, part = unit
        if self._rule.get_owner(shard, part, self._share.num_processes) != self._share.process:
            return False
        self._is_done[unit] = self._files.has(unit)
        return not self._is_done[unit]

    def _owns_shard(self, shard: int) -> bool:
        return shard % self._share.num_processes == self._share.process

    def _select_container(self, container: int) -> bool:
        """Return whether this process reads a file that holds images."""
        shard = self._rule.get_container_shard(container)
        is_done = shard in self._unread or self._files.get_marker(shard).exists()
        return self._owns_shard(shard) and not is_done
