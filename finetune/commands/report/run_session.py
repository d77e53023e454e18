"""Record of each process that trained a run: hardware, versions, command and times."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import collect_versions
from finetune.errors import FinetuneError
from finetune.system.files import write_text
from finetune.system.host import count_available_cores
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_VERSION = 1
_NUMBERS = ("seconds", "cpu_seconds", "num_processes", "num_parameters", "loaded_fraction")
_TYPES_OF_TABLES: Mapping[str, Any] = {"stages": (int, float), "reasons": str, "versions": str}


class SessionRecorder:
    """Record of the process that trains a run, written at each stage and epoch.

    A process that is stopped or killed leaves what it took so far. Failures to write are a warning:
    no run needs the record.

    Args:
        run: Run folder.
        reporter: Receiver of the warning.
        started: Value of ``time.monotonic`` when the process began to work on the run; None for
            now. What comes before the first stage is "preparation".
        is_active: Whether anything is written: on rank 0.
    """

    def __init__(
        self,
        run: RunFolder,
        reporter: Reporter,
        *,
        started: float | None = None,
        is_active: bool = True,
    ) -> None:
        """Start the clock."""
        self._is_active = is_active
        self._run = run
        self._reporter = reporter
        self._started = time.monotonic() if started is None else started
        self._cpu_started = sum(os.times()[:4])
        self._stages = [("preparation", self._started)]
        self._earlier = read_sessions(run)
        self._facts: dict[str, Any] = {}
        self._has_failed = False

    @property
    def seconds(self) -> float:
        """Time since the process began to work on the run."""
        return time.monotonic() - self._started

    def describe(self, *, device: str, num_processes: int, facts: Mapping[str, Any]) -> None:
        """Record what the process runs on.

        Args:
            device: Name of the device type: "cpu", "cuda" or "mps".
            num_processes: Number of processes that train together.
            facts: Further facts as JSON values.
        """
        started = datetime.now(UTC) - timedelta(seconds=self.seconds)
        self._facts = {
            **facts,
            "started_at": started.isoformat(timespec="seconds"),
            "command": describe_command(sys.argv),
            "working_dir": str(Path.cwd()),
            "device": device,
            "device_name": _name_device(device),
            "num_processes": num_processes,
            "num_cores": count_available_cores(),
            "platform": f"{platform.system()} {platform.machine()}",
            "git_commit": find_git_commit(Path.cwd()),
            "versions": {"python": platform.python_version(), **collect_versions()},
        }

    def begin(self, stage: str) -> None:
        """Begin a stage, which ends the one before."""
        self._stages.append((stage, time.monotonic()))
        self.save()

    def save(self) -> None:
        """Write the times up to now."""
        if not self._is_active:
            return
        now = time.monotonic()
        stages: dict[str, float] = {}
        ends = [*(start for _, start in self._stages[1:]), now]
        for (name, start), end in zip(self._stages, ends, strict=True):
            stages[name] = stages.get(name, 0.0) + end - start
        session = {
            **self._facts,
            "seconds": round(now - self._started, 3),
            "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
            "cpu_seconds": round(sum(os.times()[:4]) - self._cpu_started, 3),
        }
        content = {"version": _VERSION, "sessions": [*self._earlier, session]}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        try:
            write_text(self._run.sessions_path, text)
        except FinetuneError as error:
            if not self._has_failed:
                reason = str(error).partition("\n")[0]
                self._reporter.warn(f"Times and hardware of the run are not recorded: {reason}")
            self._has_failed = True


def read_sessions(run: RunFolder) -> list[dict[str, Any]]:
    """Return the sessions of a run; none if none were recorded, or the file is damaged."""
    try:
        content = json.loads(run.sessions_path.read_text(encoding="utf-8"))
        sessions = content["sessions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not isinstance(sessions, list):
        return []
    return [_keep_valid(session) for session in sessions if isinstance(session, dict)]


def _keep_valid(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return a session without the values that are not of their type."""
    kept = {}
    for key, value in session.items():
        inner = _TYPES_OF_TABLES.get(key)
        if inner is not None:
            if isinstance(value, dict) and all(isinstance(one, inner) for one in value.values()):
                kept[key] = value
        elif not isinstance(value, (dict, list)) and (
            key not in _NUMBERS or isinstance(value, int | float)
        ):
            kept[key] = value
    return kept


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
