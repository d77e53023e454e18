"""A server of ``finetune serve`` in a process of its own."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.runs import start_finetune


@contextmanager
def start_server(
    model: Path | str, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server, and yield its process and address when it answers."""
    process = start_finetune(folder, "serve", model, "--port", 0, "--device", "cpu", *options)
    assert process.stdout is not None
    try:
        said = ""
        while (found := re.search(r"Serving at (http://[\d.:]+)", said)) is None:
            line = process.stdout.readline()
            assert line, said
            said += line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
