"""Columns of Parquet files with images: which hold the images, labels, splits and groups."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data.layouts.parquet.column_types import (
    ImageKind,
    find_image_kind,
    get_value_type,
    holds_lists,
    is_text,
    list_fields,
)
from finetune.data.layouts.parquet.parquet_files import find_partition
from finetune.data.layouts.table_options import AUTO, PATH_COLUMNS, TableOptions
from finetune.errors import DataError
from finetune.lookup import suggest_name

_WITHOUT_NAME = {
    "image": "no column 'image', and no column of images or paths",
    "label": "no column 'label', and no column of class names",
}


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
class CategoryColumn:
    """Column that holds labels, splits or groups, or numbers that stand for them.

    Attributes:
        name: Name of the column.
        class_names: Names of the numbers in the column; None if it has no such.
        is_number: Whether its values are integers, or lists of such.
        is_list: Whether its values are lists.
        is_multi_label: Whether an image has any number of labels.
        separator: Text between the labels of a multi-label image in one text; "" for lists.
    """

    name: str
    class_names: tuple[str, ...] | None
    is_number: bool
    is_list: bool = False
    is_multi_label: bool = False
    separator: str = ""


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
    kinds = {field.name: find_image_kind(field.type) for field in schema}
    if given is not None:
        name = given
    elif (usual := _find_column(file, schema, "image")) and kinds[usual] is not None:
        name = usual
    else:
        marked = [n for n in kinds if features.get(n, {}).get("_type") == "Image" and kinds[n]]
        held = [n for n, kind in kinds.items() if kind in ("struct", "bytes")]
        listed = [_find_column(file, schema, n) for n in PATH_COLUMNS]
        paths = [n for n in listed if n is not None and kinds[n] == "path"][:1]
        candidates = next((names for names in (marked, held, paths) if names), [])
        if not candidates and usual is not None:
            candidates = [usual]  # its type is named below
        if len(candidates) != 1:
            raise DataError(_describe_choice(file, schema, "image", candidates, options))
        name = candidates[0]
    _check_unique(file, schema, name)
    kind = kinds[name]
    if kind is None:
        raise DataError(
            f"{file}: column '{name}' holds {schema.field(name).type}, not images. Expected bytes "
            f"of image files, a struct of bytes and path, or paths."
        )
    fields = list_fields(schema.field(name).type) if kind == "struct" else {}
    return ImageColumn(name, kind, has_names="path" in fields)


def choose_label_column(file: Path, schema: Any, options: TableOptions) -> CategoryColumn:
    """Return the column of the labels: the named one, or label, or the only one with class names.

    A column of lists has any number of labels for an image, as a column of texts has with
    ``data.task=multi_label``; it may also be called labels.

    Args:
        file: Parquet file, for messages.
        schema: Its Arrow schema.
        options: Names of columns.

    Raises:
        DataError: There is no such column, or several, or it holds neither texts nor integers, or
            lists where images have one class.
    """
    import pyarrow as pa

    given = _find_named(file, schema, "data.label_column", options.label_column, options.is_strict)
    name = given or _find_column(file, schema, "label")
    if name is None:
        named = _read_class_names(schema)
        candidates = [n for n in dict.fromkeys(schema.names) if n in named]
        if not candidates and (usual := _find_column(file, schema, "labels")):
            candidates = [usual]
        if len(candidates) != 1:
            raise DataError(_describe_choice(file, schema, "label", candidates, options))
        name = candidates[0]
    _check_unique(file, schema, name)
    labels = options.labels
    column = _build_category(schema, name)
    kind = get_value_type(schema.field(name).type)
    if column.is_list:
        if labels.task == "single_label":
            raise DataError(
                f"{file}: column '{name}' holds lists ({kind}), any number of labels for an image; "
                f"data.task=single_label does not apply. Leave it out, or name another column."
            )
        kind = get_value_type(kind.value_type)
        if pa.types.is_boolean(kind):
            raise DataError(
                f"{file}: column '{name}' holds lists of true and false, probably one value for "
                f"each label. Expected the labels of an image: write a list of their names, as "
                f"['cat', 'dog'], empty for an image without any."
            )
    if not column.is_number and not is_text(kind) and not pa.types.is_boolean(kind):
        raise DataError(
            f"{file}: column '{name}' holds {schema.field(name).type}; expected texts, or integers "
            f"with or without class names, or lists of these."
        )
    if labels.columns and not labels.known:
        raise DataError(
            f"data.label_columns cannot apply to {file}: of Parquet a column of lists of labels is "
            f"read. Leave it out, or write a CSV."
        )
    is_multi_label = column.is_list or labels.task == "multi_label"
    separator = labels.separator if is_multi_label and not column.is_list else ""
    return replace(column, is_multi_label=is_multi_label, separator=separator)


def find_group_column(file: Path, schema: Any, options: TableOptions) -> CategoryColumn | None:
    """Return the column of the groups; None without one.

    Raises:
        DataError: The named column is missing.
    """
    name = _find_named(file, schema, "data.group_column", options.group_column, options.is_strict)
    name = name or _find_column(file, schema, "group")
    return None if name is None else _build_category(schema, name)


def find_split_column(file: Path, schema: Any) -> CategoryColumn | None:
    """Return the column of the splits; None without one."""
    name = _find_column(file, schema, "split")
    return None if name is None else _build_category(schema, name)


def _find_named(file: Path, schema: Any, key: str, name: str, is_strict: bool) -> str | None:
    """Return the name of a column that a config key gives; None for auto."""
    if name == AUTO:
        return None
    column = _find_column(file, schema, name)
    if column is None and is_strict:
        raise DataError(
            f"{file} has no column '{name}' ({key}).{suggest_name(name, schema.names)} Name "
            f"another column."
        )
    return column


def _find_column(file: Path, schema: Any, name: str) -> str | None:
    """Return the column of a name, in any case if there is none in the same; None without one.

    Raises:
        DataError: Several columns have the name, or names that differ in case only, and none is as
            given.
    """
    found = [name] if name in schema.names else []
    found = found or sorted({n for n in schema.names if n.casefold() == name.casefold()})
    if len(found) > 1:
        raise DataError(
            f"{file} has several columns '{name}' that differ in case: {', '.join(found)}. Rename "
            f"all but one."
        )
    if found:
        _check_unique(file, schema, found[0])
    return found[0] if found else None


def _check_unique(file: Path, schema: Any, name: str) -> None:
    """Check that only one column has a name.

    Raises:
        DataError: Several have it.
    """
    if (count := schema.names.count(name)) > 1:
        raise DataError(f"{file} has {count} columns '{name}'. Rename all but one.")


def _build_category(schema: Any, name: str) -> CategoryColumn:
    """Return a column with the class names that its numbers have."""
    import pyarrow as pa

    names = _read_class_names(schema).get(name)
    kind = get_value_type(schema.field(name).type)
    is_list = holds_lists(kind)
    is_number = pa.types.is_integer(get_value_type(kind.value_type) if is_list else kind)
    class_names = None if names is None else tuple(map(str, names))
    return CategoryColumn(name, class_names, is_number, is_list)


def _read_class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Return the names of the numbers of each column, or of its lists, that the metadata have."""
    features = _read_features(schema)
    entries = {n: f.get("feature", f) for n, f in features.items()}
    return {
        n: f["names"]
        for n, f in entries.items()
        if isinstance(f, Mapping) and f.get("_type") == "ClassLabel"
    }


def _read_features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the features that the ``datasets`` library has noted in a schema, by column.

    Those of lists are an item of ``feature``; early releases wrote a list of one.
    """
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        tree = json.loads((schema.metadata or {})[b"huggingface"])
        features = tree["info"]["features"]
        features = {
            name: {"feature": value[0]} if isinstance(value, list) and value else value
            for name, value in features.items()
        }
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    return {}


def _describe_choice(
    file: Path, schema: Any, role: str, candidates: Sequence[str], options: TableOptions
) -> str:
    """Return that no column, or several, may hold the images or labels, and what to do."""
    if candidates:
        found = f"several columns that may hold the {role}s: {', '.join(candidates)}"
    else:
        found = f"{_WITHOUT_NAME[role]} (found: {', '.join(schema.names)})"
    partition = find_partition(file.parts[-2::-1])
    if role == "label" and partition is not None:
        return (
            f"{file} has {found}. Values in the names of folders ({partition}) are not read: write "
            f"the labels as a column of the files."
        )
    if not options.is_strict:  # no option of these commands names a column
        which = "the one to read" if candidates else f"the column of the {role}s"
        return f"{file} has {found}. Rename {which} to '{role}'."
    example = candidates[0] if candidates else "NAME"
    return f"{file} has {found}. Name it, as in data.{role}_column={example}."
