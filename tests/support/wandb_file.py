"""Reads what W&B wrote offline: its file is a log of protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one process logged.

    Attributes:
        run_id: Of the W&B run.
        config: Key to value.
        history: One dict a logged step.
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
    return [_read(file) for file in files]


def _read(file: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id = record.run.run_id
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "artifact" or kind == "request":
            artifact = record.artifact
            if kind == "request":
                artifact = record.request.log_artifact.artifact
            if artifact.name:
                run.artifacts[artifact.name] = [e.path for e in artifact.manifest.contents]
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Any]:
    import wandb.proto.wandb_internal_pb2 as messages

    identity, magic, _ = struct.unpack("<4sHB", data[:7])
    assert (identity, magic) == (b":W&B", 0xBEE1)
    place, buffer = 7, b""
    while place + _CHUNK_HEADER.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK_HEADER.size:
            place += left
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(data, place)
        if (length, kind) == (0, 0):
            return
        start = place + _CHUNK_HEADER.size
        place = start + length
        chunk = data[start:place]
        buffer = chunk if kind in (_FULL, _FIRST) else buffer + chunk
        if kind in (_FULL, _LAST):
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(buffer)
            yield record
