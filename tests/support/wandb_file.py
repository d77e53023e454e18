"""Reader of the offline files of W&B, which are logs of protobuf records."""

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER_SIZE = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineArtifact:
    """Artifact of an offline run.

    Attributes:
        kind: Its type.
        is_input: Whether the run uses it.
        aliases: Its aliases.
        metadata: Its metadata.
        files: Paths of its files.
    """

    kind: str
    is_input: bool
    aliases: list[str]
    metadata: dict[str, Any]
    files: list[str]


@dataclass
class OfflineRun:
    """Content logged by one process.

    Attributes:
        path: Offline file.
        run_id: Id of the W&B run.
        group: Group of the run.
        job_type: Kind of the run.
        sweep_id: Sweep of the run.
        config: Key to value.
        history: Values of each logged step.
        summary: Last values.
        artifacts: Name to the paths of its files.
        artifact_records: Name to the artifact.
        axes: Metric, or "*" for the others, to its axis.
        goals: Metric to its kind of summary.
        uploads: Files below ``files`` that are to be uploaded.
        is_preempted: Whether the run asked to be requeued.
        exit_code: Exit code; None for a run that was killed.
    """

    path: Path = Path()
    run_id: str = ""
    group: str = ""
    job_type: str = ""
    sweep_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    artifact_records: dict[str, OfflineArtifact] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    is_preempted: bool = False
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of epochs."""
        return [row for row in self.history if "train/loss" in row]


def read_offline_runs(folder: Path) -> list[OfflineRun]:
    """Return the offline runs below a run folder, oldest first."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    for file in files:
        _wait_until_written(file)
    return [_read_run(file) for file in files]


def _wait_until_written(file: Path, *, timeout_seconds: float = 20.0) -> None:
    """Wait until a file has more than its header and has stopped growing.

    W&B's service may write the records a moment after ``finish`` has returned.
    """
    deadline = time.monotonic() + timeout_seconds
    previous_size = -1
    while time.monotonic() < deadline:
        size = file.stat().st_size
        if size == previous_size and size > _HEADER_SIZE:
            return
        previous_size = size
        time.sleep(0.1)


def _read_run(file: Path) -> OfflineRun:
    run = OfflineRun(file)
    for record in _iter_records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind in _READERS:
            _READERS[kind](run, getattr(record, kind))
    return run


def _read_start(run: OfflineRun, start: Any) -> None:
    run.run_id, run.group = start.run_id, start.run_group
    run.job_type, run.sweep_id = start.job_type, start.sweep_id
    run.config |= _parse_items(start.config.update)


def _read_request(run: OfflineRun, request: Any) -> None:
    if request.log_artifact.artifact.name:
        _read_artifact(run, request.log_artifact.artifact)


def _read_exit(run: OfflineRun, end: Any) -> None:
    run.exit_code = end.exit_code


def _read_preemption(run: OfflineRun, preemption: Any) -> None:
    run.is_preempted = True


def _read_metric(run: OfflineRun, metric: Any) -> None:
    name = metric.name or metric.glob_name
    if metric.step_metric:
        run.axes[name] = metric.step_metric
    chosen = [goal for goal in ("min", "max", "last") if getattr(metric.summary, goal)]
    if chosen:
        (run.goals[name],) = chosen


def _read_artifact(run: OfflineRun, artifact: Any) -> None:
    files = [entry.path for entry in artifact.manifest.contents]
    run.artifacts[artifact.name] = files
    run.artifact_records[artifact.name] = OfflineArtifact(
        artifact.type,
        artifact.use_after_commit,
        list(artifact.aliases),
        json.loads(artifact.metadata or "{}"),
        files,
    )


_READERS: dict[str, Callable[[OfflineRun, Any], None]] = {
    "run": _read_start,
    "config": lambda run, record: run.config.update(_parse_items(record.update)),
    "history": lambda run, record: run.history.append(_parse_items(record.item)),
    "summary": lambda run, record: run.summary.update(_parse_items(record.update)),
    "metric": _read_metric,
    "files": lambda run, record: run.uploads.extend(one.path for one in record.files),
    "preempting": _read_preemption,
    "exit": _read_exit,
    "artifact": _read_artifact,
    "request": _read_request,
}
"""Reader of each type of record."""


def _parse_items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _iter_records(data: bytes) -> Iterator[Any]:
    import wandb.proto.wandb_internal_pb2 as messages

    identity, magic, _ = struct.unpack("<4sHB", data[:_HEADER_SIZE])
    assert (identity, magic) == (b":W&B", 0xBEE1)
    offset, buffer = _HEADER_SIZE, b""
    while offset + _CHUNK_HEADER.size <= len(data):
        remaining = _BLOCK - offset % _BLOCK
        if remaining < _CHUNK_HEADER.size:
            offset += remaining
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(data, offset)
        if (length, kind) == (0, 0):
            return
        start = offset + _CHUNK_HEADER.size
        offset = start + length
        chunk = data[start:offset]
        buffer = chunk if kind in (_FULL, _FIRST) else buffer + chunk
        if kind in (_FULL, _LAST):
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(buffer)
            yield record
