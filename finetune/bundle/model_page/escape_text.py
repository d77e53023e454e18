"""Names of the user in Markdown: shown as they are, never read as markup."""

import re
import unicodedata

_MARKUP = re.compile(r"([\\`*_\[\]|~#])")
_LIST_MARKER = re.compile(r"^(\d+)([.)])|^([-+=])")
_COLON = re.compile(r":(?=[\w+-]+:|//)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


def escape_markdown(text: str) -> str:
    """Return a text on one line that Markdown, and the HTML within it, show as it is.

    Dollar signs, and colons of names of emoji or of addresses, become entities: some sites read
    formulas, emoji or links from them.
    """
    line = " ".join("".join(map(_replace_control, text)).split())
    line = _COLON.sub("&#58;", line.translate(_ENTITIES))
    escaped = _MARKUP.sub(r"\\\1", line.replace("&#", "\0"))
    escaped = escaped.replace("\0", "&#")
    return _LIST_MARKER.sub(_escape_marker, escaped)


def _replace_control(letter: str) -> str:
    """Return a letter, or a blank for one that is not shown or changes the direction of text."""
    return " " if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Cs") else letter


def _escape_marker(match: re.Match[str]) -> str:
    return f"{match[1]}\\{match[2]}" if match[1] else f"\\{match[3]}"
