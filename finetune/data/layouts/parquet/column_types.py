"""Types of Parquet columns: which may hold images, texts or lists."""

from typing import Any, Literal

ImageKind = Literal["struct", "bytes", "path"]
"""How a column holds images: bytes beside their path, bytes, or paths of files."""


def find_image_kind(kind: Any) -> ImageKind | None:
    """Return how a column of a type may hold images; None if it cannot."""
    import pyarrow as pa

    kind = get_value_type(kind)
    if pa.types.is_struct(kind):
        fields = list_fields(kind)
        return "struct" if "bytes" in fields and _is_binary(fields["bytes"]) else None
    if _is_binary(kind):
        return "bytes"
    return "path" if is_text(kind) else None


def get_value_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary, or the type itself."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def list_fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a struct, by name."""
    return {field.name: field.type for field in kind}


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_text(kind: Any) -> bool:
    """Return whether a type is that of texts."""
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def holds_lists(kind: Any) -> bool:
    """Return whether a type is that of lists, of any length or a fixed one."""
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )
