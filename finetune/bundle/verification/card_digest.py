"""Digests of the entries of ``finetune.json``, by which a changed entry is found and named.

They tell damage and edits apart from what was written. They are no signature: whoever writes the
entries can write the digests.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGESTS_KEY = "digests"
"""Key of the digests in ``finetune.json``; files of earlier releases have none."""

_NUM_DIGITS = 16
_WITHOUT_DIGEST = (DIGESTS_KEY, "versions")


def add_digests(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``finetune.json`` with a digest of each entry, but of versions."""
    entries = {key: value for key, value in tree.items() if key != DIGESTS_KEY}
    digests = {
        key: _compute_digest(value) for key, value in entries.items() if key not in _WITHOUT_DIGEST
    }
    return {**entries, DIGESTS_KEY: digests}


def check_digests(tree: Mapping[str, Any]) -> None:
    """Check that no entry was changed since ``add_digests``; without digests, check nothing.

    Raises:
        ValueError: Some were; the message names them.
    """
    digests = tree.get(DIGESTS_KEY)
    if digests is None:
        return
    if not isinstance(digests, Mapping):
        raise ValueError(f"'{DIGESTS_KEY}' in finetune.json is no object")
    entries = (tree.keys() | digests.keys()) - set(_WITHOUT_DIGEST)
    changed = sorted(
        key for key in entries if key not in tree or _compute_digest(tree[key]) != digests.get(key)
    )
    if changed:
        names = ", ".join(f"'{key}'" for key in changed)
        verb = "differs from its digest" if len(changed) == 1 else "differ from their digests"
        raise ValueError(f"finetune.json was changed after it was written: {names} {verb}")


def _compute_digest(value: Any) -> str:
    """Return the digest of a JSON value, the same for any order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_DIGITS]
