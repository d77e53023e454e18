"""Batch scripts of runs: what they ask SLURM for, and the part that is the same in all."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from finetune.errors import ConfigError

BODY = "batch_body.sh"
"""What every batch script ends with, the shipped ones in ``scripts/slurm`` too."""

_SIGNAL_SECONDS = 120
_FORMS = "minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes:seconds"
_TIME = re.compile(
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"
    r"|((?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)|(?P<only>\d+)"
)
_ENDLESS = ("UNLIMITED", "INFINITE")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job asks for; None leaves it to the cluster.

    Attributes:
        nodes: Machines.
        gpus_per_node: Each has a process of its own.
        tasks_per_node: Processes of a machine where they have no GPUs.
        cpus_per_task: Cores of a process.
        partition: Queue.
        time: Limit, as sbatch takes it.
        account: Who pays.
        extra: Further options of sbatch, as they are.
    """

    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def processes_per_node(self) -> int:
        """Processes of a machine."""
        return self.gpus_per_node or self.tasks_per_node or 1


def batch_script(words: Sequence[str], asked: Resources, run_dir: Path) -> str:
    """Return a script: what it asks for, where the run goes, the words of fit, and the body.

    Raises:
        ConfigError: The time limit is malformed.
    """
    finetune = shlex.join([sys.executable, "-m", "finetune"])
    lines = [
        "#!/bin/bash",
        "# Written by finetune submit. To submit it again, where the run goes on:",
        f"#   sbatch {shlex.quote(str(beside(run_dir, '.sbatch')))}",
        *(f"#SBATCH {option}" for option in _options(asked, run_dir)),
        "",
        f"run={shlex.quote(str(run_dir))}",
        'again="Submitted once more it goes on."',
        f'[ -n "${{FINETUNE:-}}" ] || FINETUNE={shlex.quote(finetune)}',
        f"set -- {shlex.join(words)}",
    ]
    return "\n".join(lines) + "\n\n" + body()


def body() -> str:
    """Return what every batch script ends with."""
    return resources.files(__package__).joinpath(BODY).read_text(encoding="utf-8")


def beside(run_dir: Path, suffix: str) -> Path:
    """Return the file beside a run folder that bears its name."""
    return run_dir.with_name(run_dir.name + suffix)


def _options(asked: Resources, run_dir: Path) -> Iterator[str]:
    """Yield the options of sbatch; of two that are the same the later one holds."""
    log = str(beside(run_dir, ".log")).replace("%", "%%")
    # never --gpus-per-task: it hides the other GPUs of a machine from a process
    given = {
        "job-name": run_dir.name,
        "chdir": str(Path.cwd()),
        "output": log,
        "nodes": asked.nodes,
        "ntasks-per-node": asked.processes_per_node,
        "gpus-per-node": asked.gpus_per_node,
        "cpus-per-task": asked.cpus_per_task,
        "partition": asked.partition,
        "time": asked.time,
        "account": asked.account,
        "signal": f"USR1@{_signal_seconds(asked.time)}",
    }
    yield from (f"--{key}={_quoted(value)}" for key, value in given.items() if value is not None)
    yield from ("--open-mode=append", "--requeue")
    yield from asked.extra


def _quoted(value: object) -> str:
    """Return a value as sbatch reads it back from a script."""
    text = str(value)
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return text if re.fullmatch(r"[\w./:@%,+-]+", text) else f'"{escaped}"'


def _signal_seconds(time: str | None) -> int:
    """Return how long before its limit a job is told to save; less where it is over soon."""
    limit = None if time is None else _seconds(time)
    return _SIGNAL_SECONDS if limit is None else min(_SIGNAL_SECONDS, limit // 4)


def _seconds(time: str) -> int | None:
    """Return a time limit in seconds, None without a limit."""
    if time.upper() in _ENDLESS:
        return None
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(f"--time {time}: give {_FORMS}, as in 4:00:00 for four hours.")
    part = {name: int(text or 0) for name, text in match.groupdict().items()}
    minutes = (part["days"] * 24 + part["hours"] + part["h"]) * 60
    minutes += part["minutes"] + part["m"] + part["only"]
    return minutes * 60 + part["seconds"] + part["s"] or None
