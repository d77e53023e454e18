"""Record of each process that trained a run: hardware, versions, command and times."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import collect_versions
from finetune.system.files import write_text
from finetune.system.host import count_available_cores
from finetune.system.run_folder import RunFolder

_VERSION = 1


@dataclass(frozen=True, slots=True)
class SessionClock:
    """Clock of a process that trains a run, from its creation on.

    Attributes:
        first_row: Number of rows of ``metrics.csv`` that earlier processes have written.
        started: Wall time, in seconds.
        cpu_started: CPU time of this process and its children that have ended, in seconds.
    """

    first_row: int
    started: float = field(default_factory=time.time)
    cpu_started: float = field(default_factory=lambda: sum(os.times()[:4]))


def record_session(
    run: RunFolder,
    clock: SessionClock,
    rows: Sequence[Mapping[str, float]],
    *,
    device: str,
    num_processes: int,
    facts: Mapping[str, Any],
) -> None:
    """Append this process to the sessions of a run.

    Args:
        run: Run folder.
        clock: Clock of this process.
        rows: Rows of ``metrics.csv``, which have the seconds of each epoch.
        device: Name of the device type: "cpu", "cuda" or "mps".
        num_processes: Number of processes that trained together.
        facts: Further facts as JSON values.

    Raises:
        StorageError: The disk is full or fails.
    """
    seconds = time.time() - clock.started
    own = rows[clock.first_row :]
    probe = sum(row.get("seconds", 0.0) for row in own if row["epoch"] == 0)
    epochs = sum(row.get("seconds", 0.0) for row in own if row["epoch"] > 0)
    session = {
        **facts,
        "started_at": datetime.fromtimestamp(clock.started, UTC).isoformat(timespec="seconds"),
        "command": describe_command(sys.argv),
        "working_dir": str(Path.cwd()),
        "seconds": round(seconds, 3),
        "stages": {
            "settings and linear probe": round(probe, 3),
            "epochs": round(epochs, 3),
            "evaluation and bundle": round(max(0.0, seconds - probe - epochs), 3),
        },
        "cpu_seconds": round(sum(os.times()[:4]) - clock.cpu_started, 3),
        "device": device,
        "device_name": _name_device(device),
        "num_processes": num_processes,
        "num_cores": count_available_cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git_commit": find_git_commit(Path.cwd()),
        "versions": {"python": platform.python_version(), **collect_versions()},
    }
    content = {"version": _VERSION, "sessions": [*read_sessions(run), session]}
    write_text(run.sessions_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_sessions(run: RunFolder) -> list[dict[str, Any]]:
    """Return the sessions of a run; none if none were recorded, or the file is damaged."""
    try:
        content = json.loads(run.sessions_path.read_text(encoding="utf-8"))
        sessions = content["sessions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []


def describe_command(argv: Sequence[str]) -> str:
    """Return the command of a process as it was typed; empty for one that is not of finetune."""
    program = Path(argv[0]).name if argv else ""
    if program == "__main__.py" and Path(argv[0]).parent.name == "finetune":
        program = "finetune"
    return shlex.join([program, *argv[1:]]) if program == "finetune" else ""


def _name_device(device: str) -> str:
    """Return the model of the GPU or of the processor."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def find_git_commit(folder: Path) -> str | None:
    """Return the commit of the working folder, with a plus sign if files were changed since."""
    command = ["git", "-C", str(folder)]
    try:
        commit, changes = (
            subprocess.run(
                [*command, *words], capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
            for words in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")
