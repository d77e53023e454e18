"""Batch scripts of runs: what they ask SLURM for, and the part that is the same in all."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from finetune.errors import ConfigError

BODY_FILE_NAME = "batch_body.sh"
"""What every batch script ends with, the shipped ones in ``scripts/slurm`` too."""

_SIGNAL_LEAD_SECONDS = 120
_TIME_FORMATS = (
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes:seconds"
)
_TIME_PATTERN = re.compile(
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"
    r"|((?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)|(?P<only>\d+)"
)
_UNLIMITED = ("UNLIMITED", "INFINITE")


@dataclass(frozen=True, slots=True)
class JobResources:
    """What a job asks for; None leaves it to the cluster.

    Attributes:
        nodes: Machines.
        gpus_per_node: Each has a process of its own.
        tasks_per_node: Processes of a machine where they have no GPUs.
        cpus_per_task: Cores of a process.
        partition: Queue.
        time: Limit, as sbatch takes it.
        account: Who pays.
        extra_options: Further options of sbatch, as they are.
    """

    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    extra_options: tuple[str, ...] = ()

    @property
    def processes_per_node(self) -> int:
        """Processes of a machine."""
        return self.gpus_per_node or self.tasks_per_node or 1


def render_batch_script(fit_args: Sequence[str], job_resources: JobResources, run_dir: Path) -> str:
    """Return a script: what it asks for, where the run goes, the words of fit, and the body.

    Raises:
        ConfigError: The time limit is malformed.
    """
    finetune = shlex.join([sys.executable, "-m", "finetune"])
    lines = [
        "#!/bin/bash",
        "# Written by finetune submit. To submit it again, where the run goes on:",
        f"#   sbatch {shlex.quote(str(build_sibling_path(run_dir, '.sbatch')))}",
        *(f"#SBATCH {option}" for option in _build_sbatch_options(job_resources, run_dir)),
        "",
        f"run={shlex.quote(str(run_dir))}",
        'again="Submitted once more it goes on."',
        f'[ -n "${{FINETUNE:-}}" ] || FINETUNE={shlex.quote(finetune)}',
        f"set -- {shlex.join(fit_args)}",
    ]
    return "\n".join(lines) + "\n\n" + read_body()


def read_body() -> str:
    """Return what every batch script ends with."""
    return resources.files(__package__).joinpath(BODY_FILE_NAME).read_text(encoding="utf-8")


def build_sibling_path(run_dir: Path, suffix: str) -> Path:
    """Return the file beside a run folder that bears its name."""
    return run_dir.with_name(run_dir.name + suffix)


def _build_sbatch_options(job_resources: JobResources, run_dir: Path) -> Iterator[str]:
    """Yield the options of sbatch; of two that are the same the later one holds."""
    log = str(build_sibling_path(run_dir, ".log")).replace("%", "%%")
    # never --gpus-per-task: it hides the other GPUs of a machine from a process
    given = {
        "job-name": run_dir.name,
        "chdir": str(Path.cwd()),
        "output": log,
        "nodes": job_resources.nodes,
        "ntasks-per-node": job_resources.processes_per_node,
        "gpus-per-node": job_resources.gpus_per_node,
        "cpus-per-task": job_resources.cpus_per_task,
        "partition": job_resources.partition,
        "time": job_resources.time,
        "account": job_resources.account,
        "signal": f"USR1@{_compute_signal_lead_seconds(job_resources.time)}",
    }
    yield from (f"--{key}={_quote(value)}" for key, value in given.items() if value is not None)
    yield from ("--open-mode=append", "--requeue")
    yield from job_resources.extra_options


def _quote(value: object) -> str:
    """Return a value as sbatch reads it back from a script."""
    text = str(value)
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return text if re.fullmatch(r"[\w./:@%,+-]+", text) else f'"{escaped}"'


def _compute_signal_lead_seconds(time: str | None) -> int:
    """Return how long before its limit a job is told to save; less where it is over soon."""
    limit = None if time is None else _parse_time_limit(time)
    return _SIGNAL_LEAD_SECONDS if limit is None else min(_SIGNAL_LEAD_SECONDS, limit // 4)


def _parse_time_limit(time: str) -> int | None:
    """Return a time limit in seconds, None without a limit."""
    if time.upper() in _UNLIMITED:
        return None
    match = _TIME_PATTERN.fullmatch(time)
    if match is None:
        raise ConfigError(f"--time {time}: give {_TIME_FORMATS}, as in 4:00:00 for four hours.")
    part = {name: int(text or 0) for name, text in match.groupdict().items()}
    minutes = (part["days"] * 24 + part["hours"] + part["h"]) * 60
    minutes += part["minutes"] + part["m"] + part["only"]
    return minutes * 60 + part["seconds"] + part["s"] or None
