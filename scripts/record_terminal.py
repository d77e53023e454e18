"""Records a command of finetune as an SVG picture of a terminal.

    uv run python scripts/record_terminal.py docs/images/fit.svg -- fit photos/ --backbone resnet18

The command runs for real, in a terminal of 80 columns; the picture shows what it printed. Lines
that begin with a word given by ``--skip`` are left out.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 80


def main() -> None:
    """Run the command and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="SVG file to write")
    parser.add_argument("--title", help="shown command line; default: the command itself")
    parser.add_argument("--skip", default="", help="first words of lines to leave out, by comma")
    arguments = sys.argv[1:]
    if "--" not in arguments:
        parser.error("name the command of finetune after --")
    at = arguments.index("--")
    options, words = parser.parse_args(arguments[:at]), arguments[at + 1 :]
    # colours, but no progress bars, which would leave a line for each of their states
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "TTY_INTERACTIVE": "0",
        "COLUMNS": str(COLUMNS),
    }
    result = subprocess.run(
        [sys.executable, "-m", "finetune", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    title = options.title or f"finetune {' '.join(words)}"
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {title}", style="bold"))
        for line in _leave_out(result.stdout.splitlines(), options.skip.split(",")):
            # rich drops leading spaces in SVG, unless they do not break
            text = re.sub(r"^ +", lambda match: "\N{NO-BREAK SPACE}" * len(match[0]), line)
            console.print(Text.from_ansi(text), overflow="fold")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # without the fonts that rich would load from a server
    picture = console.export_svg(title="finetune", theme=MONOKAI)
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    options.output.write_text(picture, encoding="utf-8")


def _leave_out(lines: list[str], first_words: list[str]) -> list[str]:
    """Return the lines without cursor codes and without rows that begin with given words."""
    kept: list[str] = []
    is_skipped = False
    for line in lines:
        visible = re.sub(r"\x1b\[\?25[lh]", "", line).rstrip()
        plain = Text.from_ansi(visible).plain
        if not plain.strip():
            continue
        # a row continues in indented lines
        is_skipped = plain.split()[0] in first_words or (is_skipped and plain.startswith("    "))
        if not is_skipped:
            kept.append(visible)
    return kept


if __name__ == "__main__":
    main()
