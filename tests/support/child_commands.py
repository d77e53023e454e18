"""Commands and functions in new processes that are forked with all imports done.

Such a process has no state of the tests, and starts in milliseconds, where a new interpreter takes
seconds for its imports.
"""

import os
import signal
import sys
from pathlib import Path

from finetune.cli.main import run
from finetune.data.scan import scan
from tests.support.processes import start_process

_SECONDS = 240


def run_in_child(folder: Path, *words: object) -> tuple[int, str]:
    """Run a command line in ``folder``; return its exit code, and all that it printed."""
    log = folder / "child.log"
    with start_process(_run_command, folder, [str(word) for word in words], log) as child:
        child.join(_SECONDS)
        code = child.exitcode
    assert code is not None, log.read_text()
    return code, log.read_text()


def scan_in_child(file: Path, cache: Path, *, kill_after: int | None = None) -> int | None:
    """Scan a path in a process that ends afterwards; return its exit code.

    Args:
        file: Path to scan.
        cache: Value of ``FINETUNE_CACHE``.
        kill_after: Number of written image files after which the process is killed.
    """
    with start_process(_scan, file, cache, kill_after) as child:
        child.join(_SECONDS)
        code: int | None = child.exitcode
    return code


def start_scans(file: Path, cache: Path, *, count: int) -> list[int | None]:
    """Scan a path in several processes at once; return their exit codes."""
    if count == 0:
        return []
    with start_process(_scan, file, cache, None) as child:
        others = start_scans(file, cache, count=count - 1)
        child.join(_SECONDS)
        return [child.exitcode, *others]


def _run_command(folder: Path, words: list[str], log: Path) -> None:
    os.chdir(folder)
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    code = run(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _scan(file: Path, cache: Path, kill_after: int | None) -> None:
    os.environ["FINETUNE_CACHE"] = str(cache)
    write_bytes = Path.write_bytes
    written: list[Path] = []

    def write(path: Path, data: bytes) -> int:
        if len(written) == kill_after:
            signal.raise_signal(signal.SIGKILL)
        written.append(path)
        return write_bytes(path, data)

    Path.write_bytes = write  # type: ignore[method-assign, assignment]
    scan(file)
