"""Columns of Parquet files with images: which hold the images, labels, splits and groups."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.data.layouts.table_options import AUTO, TableOptions
from finetune.errors import DataError
from finetune.lookup import suggest_name

ImageKind = Literal["struct", "bytes", "path"]
"""How a column holds images: bytes beside their path, bytes, or paths of files."""

_PATH_COLUMNS = ("path", "file_name", "filename", "image_path", "file_path", "filepath", "file")


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """Column that holds images.

    Attributes:
        name: Name of the column.
        kind: How it holds them.
        has_names: Whether a struct has the path of the image, too.
    """

    name: str
    kind: ImageKind
    has_names: bool = False


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """Column that holds labels.

    Attributes:
        name: Name of the column.
        class_names: Names of the numbers in the column; None if it has no such.
        is_number: Whether its values are integers.
    """

    name: str
    class_names: tuple[str, ...] | None
    is_number: bool


def choose_image_column(file: Path, schema: Any, options: TableOptions) -> ImageColumn:
    """Return the column of the images: the named one, or image, or the only one that may be it.

    Args:
        file: Parquet file, for messages.
        schema: Its Arrow schema.
        options: Names of columns.

    Raises:
        DataError: There is no such column, or several, or it holds something else.
    """
    given = _find_named(file, schema, "data.image_column", options.image_column, options.is_strict)
    features = _read_features(schema)
    kinds = {field.name: _find_image_kind(field.type) for field in schema}
    if given is not None:
        name = given
    elif kinds.get("image") is not None:
        name = "image"
    else:
        marked = [n for n in kinds if features.get(n, {}).get("_type") == "Image" and kinds[n]]
        held = [n for n, kind in kinds.items() if kind in ("struct", "bytes")]
        paths = [n for n in _PATH_COLUMNS if kinds.get(n) == "path"][:1]
        candidates = next((names for names in (marked, held, paths) if names), [])
        if len(candidates) != 1:
            raise DataError(_describe_choice(file, schema, "image", "images", candidates))
        name = candidates[0]
    kind = kinds[name]
    if kind is None:
        raise DataError(
            f"{file}: column '{name}' holds {schema.field(name).type}, not images. Expected bytes "
            f"of image files, a struct of bytes and path, or paths."
        )
    fields = _list_fields(schema.field(name).type) if kind == "struct" else {}
    return ImageColumn(name, kind, has_names="path" in fields)


def choose_label_column(file: Path, schema: Any, options: TableOptions) -> LabelColumn:
    """Return the column of the labels: the named one, or label, or the only one with class names.

    Args:
        file: Parquet file, for messages.
        schema: Its Arrow schema.
        options: Names of columns.

    Raises:
        DataError: There is no such column, or several, or it holds neither texts nor integers.
    """
    import pyarrow as pa

    features = _read_features(schema)
    named = {n: f["names"] for n, f in features.items() if f.get("_type") == "ClassLabel"}
    given = _find_named(file, schema, "data.label_column", options.label_column, options.is_strict)
    if given is not None:
        name = given
    elif "label" in schema.names:
        name = "label"
    else:
        candidates = [n for n in schema.names if n in named]
        if len(candidates) != 1:
            raise DataError(_describe_choice(file, schema, "label", "labels", candidates))
        name = candidates[0]
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_number = pa.types.is_integer(kind)
    if not is_number and not _is_text(kind) and not pa.types.is_boolean(kind):
        several = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        hint = (
            "several labels for an image are read from a CSV only"
            if several
            else "expected texts, or integers with or without class names"
        )
        raise DataError(f"{file}: column '{name}' holds {schema.field(name).type}; {hint}.")
    names = named.get(name)
    return LabelColumn(name, None if names is None else tuple(map(str, names)), is_number)


def find_group_column(file: Path, schema: Any, options: TableOptions) -> str | None:
    """Return the column of the groups; None without one.

    Raises:
        DataError: The named column is missing.
    """
    given = _find_named(file, schema, "data.group_column", options.group_column, options.is_strict)
    return given or ("group" if "group" in schema.names else None)


def _find_named(file: Path, schema: Any, key: str, name: str, is_strict: bool) -> str | None:
    """Return the name of a column that a config key gives; None for auto."""
    if name == AUTO or (name not in schema.names and not is_strict):
        return None
    if name not in schema.names:
        raise DataError(
            f"{file} has no column '{name}' ({key}).{suggest_name(name, schema.names)} Name "
            f"another column."
        )
    return name


def _read_features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the features that the ``datasets`` library has noted in a schema, by column."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        tree = json.loads((schema.metadata or {})[b"huggingface"])
        features = tree["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    return {}


def _find_image_kind(kind: Any) -> ImageKind | None:
    """Return how a column of a type may hold images; None if it cannot."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = _list_fields(kind)
        return "struct" if "bytes" in fields and _is_binary(fields["bytes"]) else None
    if _is_binary(kind):
        return "bytes"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return "path" if _is_text(kind) else None


def _list_fields(kind: Any) -> dict[str, Any]:
    return {field.name: field.type for field in kind}


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _describe_choice(
    file: Path, schema: Any, key: str, what: str, candidates: Sequence[str]
) -> str:
    """Return that no column, or several, may hold the images or labels, and how to name it."""
    columns = ", ".join(schema.names)
    if candidates:
        found = f"several columns that may hold the {what}: {', '.join(candidates)}"
    else:
        found = f"no column of {what} that is called so (found: {columns})"
    example = candidates[0] if candidates else "NAME"
    return f"{file} has {found}. Name it, as in data.{key}_column={example}."
