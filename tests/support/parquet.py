"""Parquet files of images as the hub writes them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.support.helpers import create_noise

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = ("ant", "bee", "cow")


def encode_noise(seed: int, format: str = "PNG") -> bytes:  # noqa: A002
    """Return the bytes of an image file of noise, determined by the seed."""
    return encode(create_noise(seed=seed), format)


def encode(image: Image.Image, format: str = "PNG") -> bytes:  # noqa: A002
    """Return the bytes of an image as a file."""
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def write_table(
    file: Path,
    columns: Mapping[str, Any],
    *,
    class_names: Mapping[str, Sequence[str]] | None = None,
    row_group_size: int = 5,
) -> Path:
    """Write a Parquet file; ``class_names`` are the ClassLabels of the hub's metadata."""
    table = pa.table(dict(columns))
    features: dict[str, Any] = {
        name: {"names": list(names), "_type": "ClassLabel"}
        for name, names in (class_names or {}).items()
    }
    features |= {
        field.name: {"_type": "Image"} for field in table.schema if field.type == IMAGE_TYPE
    }
    if class_names is not None:
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=row_group_size)
    return file


def write_hub_file(
    file: Path,
    rows: Sequence[tuple[bytes | None, str | None, int]],
    *,
    names: Sequence[str] = CLASSES,
    **further: Sequence[Any],
) -> Path:
    """Write a Parquet file of (bytes, path, label) as the hub does, with further columns."""
    images = [
        None if row[:2] == (None, None) else {"bytes": row[0], "path": row[1]} for row in rows
    ]
    columns = {
        "image": pa.array(images, IMAGE_TYPE),
        "label": pa.array([row[2] for row in rows], pa.int64()),
        **further,
    }
    return write_table(file, columns, class_names={"label": names})
