"""Records a command of finetune as an SVG picture of a terminal.

    uv run python scripts/record_terminal.py docs/images/fit.svg -- fit photos/ --backbone resnet18

The command runs for real, in a terminal of 80 columns; the picture shows what it printed. Lines
that begin with a word given by ``--skip`` are left out and marked by an ellipsis.
"""

import argparse
import os
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
    parser.add_argument("--skip", nargs="*", default=[], help="first words of lines to leave out")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: words of finetune")
    options = parser.parse_args()
    words = [word for word in options.command if word != "--"]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
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
        for line in _leave_out(result.stdout.splitlines(), options.skip):
            console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(options.output), title="finetune", theme=MONOKAI)


def _leave_out(lines: list[str], first_words: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        word = Text.from_ansi(line).plain.strip().partition(" ")[0]
        if word not in first_words:
            kept.append(line)
        elif kept[-1:] != ["…"]:
            kept.append("…")
    return kept


if __name__ == "__main__":
    main()
