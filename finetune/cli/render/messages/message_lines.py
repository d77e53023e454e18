"""Messages in lines that fit the console, with each command whole, so that it can be copied."""

import re

from rich.cells import cell_len

_PROGRAMS = frozenset({"finetune", "pip", "srun", "torchrun", "sbatch", "squeue", "python"})
_VERBS = frozenset(
    {
        "fit", "inspect", "compare", "tune", "demo", "submit", "evaluate", "predict", "export",
        "push", "report", "serve", "fetch", "config", "install",
    }
)  # fmt: skip
_WORD = re.compile(r"""(\s*)((?:'[^']*'|"[^"]*")[.,;:)]*(?=\s|$)|\S+)""")
"""Space and a word; one in quotes may have spaces."""
_ARGUMENT = re.compile(r"^[-'\"\d]|[/=|…]|\.\w|^[A-Z_]{2,}\b|\.\.\.$")
"""What an argument of a command has and a word of a sentence lacks."""
_AFTER_OPTION = frozenset(
    {
        "and", "as", "at", "before", "first", "for", "if", "in", "lists", "on", "once", "only",
        "or", "says", "shows", "then", "to", "with", "without", "writes",
    }
)  # fmt: skip
"""Words of a sentence that may follow an option without a value."""
_OF_SENTENCE = frozenset({"and", "or", "it", "needs", "read", "reads", "use", "uses"})
"""Words of a sentence that end a command after a colon, too."""
_LABEL = re.compile(r"\S[^.,;:]{0,20} {2,}(?=\S)")
"""Name and gap of a line that is a row of a table."""
_INDENT = "  "


def wrap_message(text: str, width: int, *, start: int = 0) -> list[str]:
    """Return a message in lines of a width; a path or command that is longer stays on one line.

    A command that a line ends with after a colon has a line of its own, unless all fits one line.

    Args:
        text: Message; each of its lines is wrapped, with the indentation that it has.
        width: Number of columns.
        start: Columns of the first line that a prefix takes.
    """
    lines = []
    for number, line in enumerate(text.split("\n")):
        taken = start if number == 0 else 0
        lines += [line] if taken + cell_len(line) <= width else _wrap_line(line, width, taken)
    return lines


def _wrap_line(line: str, width: int, start: int) -> list[str]:
    first = line[: len(line) - len(line.lstrip())]
    label = _LABEL.match(line.lstrip())
    indent = first + " " * (0 if label is None else cell_len(label[0]))
    parts = _join_commands(line.strip())
    if not parts:
        return [line]
    command = ""
    if len(parts) > 1 and parts[-2][1].endswith(":") and _is_command(parts[-1][1]):
        command = parts.pop()[1]
    lines = []
    current, length = first + parts[0][1], start + len(first) + cell_len(parts[0][1])
    for space, part in parts[1:]:
        size = cell_len(part)
        if length + len(space) + size > width:
            lines.append(current)
            current, length = indent + part, len(indent) + size
        else:
            current, length = current + space + part, length + len(space) + size
    lines.append(current)
    return [*lines, f"{indent}{_INDENT}{command}"] if command else lines


def _is_command(part: str) -> bool:
    return part.partition(" ")[0] in _PROGRAMS and " " in part


def _join_commands(line: str) -> list[tuple[str, str]]:
    """Return the space before each word of a line and the word; a command is one word."""
    words = [(match[1], match[2]) for match in _WORD.finditer(line)]
    parts = []
    number = 0
    while number < len(words):
        space, word = words[number]
        end = number + 1
        if word.lstrip("(`") in _PROGRAMS:
            is_all = number > 0 and words[number - 1][1].endswith(":")
            end = _find_command_end([text for _, text in words], number, is_all=is_all)
        parts.append((space, " ".join(text for _, text in words[number:end])))
        number = end
    return parts


def _find_command_end(words: list[str], start: int, *, is_all: bool) -> int:
    """Return the number of the first word after a command.

    Args:
        words: Words of a line.
        start: Number of the first word of the command.
        is_all: Whether all words are part of it up to one that ends a clause, as after a colon.
    """
    for number in range(start + 1, len(words)):
        word, before = words[number], words[number - 1]
        bare = word.rstrip(".,;:)`")
        if not (
            (is_all and number > start + 1 and bare not in _OF_SENTENCE)
            or bare in _VERBS | _PROGRAMS
            or _ARGUMENT.search(word) is not None
            or (before.startswith("-") and bare not in _AFTER_OPTION)
        ):
            return number
        if bare != word and not word.endswith("..."):
            return number + 1
    return len(words)
