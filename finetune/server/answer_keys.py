"""Keys of JSON answers, read from the OpenAPI description."""

from collections.abc import Iterator, Mapping
from typing import Any

_REFERENCE = "#/components/schemas/"


def list_answer_keys(
    schema: Mapping[str, Any], operation: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return key, type and meaning of what an operation answers; empty for an answer without JSON.

    Keys of objects within it follow theirs, as in ``predictions[].label``.

    Args:
        schema: OpenAPI description.
        operation: Operation in it.
    """
    content = operation["responses"]["200"].get("content", {}).get("application/json", {})
    return list(_iter_keys(schema, content.get("schema", {}), ""))


def _iter_keys(
    schema: Mapping[str, Any], part: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str, str]]:
    part = _resolve(schema, part)
    if "items" in part:
        yield from _iter_keys(schema, part["items"], f"{prefix}[]")
        return
    for name, entry in part.get("properties", {}).items():
        key = f"{prefix}.{name}" if prefix else name
        yield key, _name_type(schema, entry), entry.get("description", "")
        inner = next((one for one in entry.get("anyOf", ()) if one.get("type") != "null"), entry)
        yield from _iter_keys(schema, inner, key)


def _resolve(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in part:
        return part
    found: Mapping[str, Any] = schema["components"]["schemas"][
        part["$ref"].removeprefix(_REFERENCE)
    ]
    return found


def _name_type(schema: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_name_type(schema, one) for one in entry["anyOf"])
    return str(_resolve(schema, entry).get("type", "any"))
