"""Reader of the offline files of W&B, which are logs of protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER_SIZE = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """Content logged by one process.

    Attributes:
        run_id: Id of the W&B run.
        config: Key to value.
        history: Values of each logged step.
        summary: Last values.
        artifacts: Name to the paths of its files.
    """

    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)


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
    run = OfflineRun()
    for record in _iter_records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id = record.run.run_id
            run.config |= _parse_items(record.run.config.update)
        elif kind == "config":
            run.config |= _parse_items(record.config.update)
        elif kind == "history":
            run.history.append(_parse_items(record.history.item))
        elif kind == "summary":
            run.summary |= _parse_items(record.summary.update)
        elif kind == "artifact" or kind == "request":
            artifact = record.artifact
            if kind == "request":
                artifact = record.request.log_artifact.artifact
            if artifact.name:
                run.artifacts[artifact.name] = [e.path for e in artifact.manifest.contents]
    return run


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
