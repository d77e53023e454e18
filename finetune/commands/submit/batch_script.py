"""Batch scripts of runs: a header with the requested resources, and a common body."""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from finetune.errors import ConfigError

BODY_FILE_NAME = "batch_body.sh"
"""File of the common body of all batch scripts."""

FOLDS_SUFFIX = ".folds"
"""Suffix of the name of the job array that trains the folds of a cross-validation."""

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
    """Resources that a job requests; None leaves a value to the cluster.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: GPUs per node, with one process each.
        tasks_per_node: Processes per node without GPUs.
        cpus_per_task: CPU cores per process.
        partition: SLURM partition.
        time: Time limit in a format of sbatch.
        account: SLURM account to charge.
        extra_options: Further options of sbatch, passed unchanged.
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
        """Number of processes per node."""
        return self.gpus_per_node or self.tasks_per_node or 1


def render_batch_script(
    fit_args: Sequence[str],
    job_resources: JobResources,
    run_dir: Path,
    *,
    num_folds: int | None = None,
) -> str:
    """Return a batch script: requested resources, run folder, arguments of fit, and the body.

    Args:
        fit_args: Arguments of ``fit``, without the run folder.
        job_resources: Resources of the job.
        run_dir: Absolute path of the run folder.
        num_folds: Number of folds that the tasks of a job array train, one each; None for a job
            that does all of the run.

    Raises:
        ConfigError: The time limit is malformed.
    """
    is_array = num_folds is not None
    suffix = FOLDS_SUFFIX if is_array else ""
    log_suffix = ".fold-%a.log" if is_array else ".log"
    fold = ' --fold "$SLURM_ARRAY_TASK_ID"' if is_array else ""
    options = _build_sbatch_options(
        job_resources, run_dir, suffix, log_suffix, array=f"1-{num_folds}" if is_array else None
    )
    return _join_script(
        run_dir,
        suffix,
        options,
        purpose="resume the run",
        last_lines=[f"set -- {shlex.join(fit_args)}{fold}"],
    )


def render_prediction_script(
    predict_args: Sequence[str], job_resources: JobResources, folder: Path, *, num_tasks: int
) -> str:
    """Return the batch script of a prediction in parts, which the tasks of a job array share.

    Args:
        predict_args: Arguments of ``predict``, with the folder of the parts.
        job_resources: Resources of each task.
        folder: Absolute path of the folder of the parts.
        num_tasks: Number of tasks; 1 for a job that is no array.

    Raises:
        ConfigError: The time limit is malformed.
    """
    is_array = num_tasks > 1
    options = _build_sbatch_options(
        job_resources,
        folder,
        "",
        ".task-%a.log" if is_array else ".log",
        array=f"1-{num_tasks}" if is_array else None,
    )
    return _join_script(
        folder,
        "",
        options,
        purpose="predict what is missing",
        last_lines=[
            "verb=predict",
            *([f"export FINETUNE_NUM_TASKS={num_tasks}"] if is_array else []),
            f"set -- {shlex.join(predict_args)}",
        ],
    )


def _join_script(
    run_dir: Path,
    suffix: str,
    options: Iterable[str],
    *,
    purpose: str,
    last_lines: Sequence[str],
) -> str:
    """Return a batch script: options of sbatch, variables and arguments, and the body."""
    finetune = shlex.join([sys.executable, "-m", "finetune"])
    lines = [
        "#!/bin/bash",
        f"# Written by finetune submit. To submit it again and {purpose}:",
        f"#   sbatch {shlex.quote(str(build_sibling_path(run_dir, f'{suffix}.sbatch')))}",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"run={shlex.quote(str(run_dir))}",
        f'again="Submit it again to {purpose}."',
        f'[ -n "${{FINETUNE:-}}" ] || FINETUNE={shlex.quote(finetune)}',
        *last_lines,
    ]
    return "\n".join(lines) + "\n\n" + read_body()


def read_body() -> str:
    """Return the common body of the batch scripts."""
    return resources.files(__package__).joinpath(BODY_FILE_NAME).read_text(encoding="utf-8")


def build_sibling_path(run_dir: Path, suffix: str) -> Path:
    """Return the path next to a run folder that has its name and a suffix."""
    return run_dir.with_name(run_dir.name + suffix)


def _build_sbatch_options(
    job_resources: JobResources, run_dir: Path, suffix: str, log_suffix: str, *, array: str | None
) -> Iterator[str]:
    """Yield the options of sbatch; a later option overrides an earlier one of the same name."""
    log = str(build_sibling_path(run_dir, "")).replace("%", "%%") + log_suffix
    # not --gpus-per-task: it would hide the other GPUs of the node from a process
    options = {
        "job-name": f"{run_dir.name}{suffix}",
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
    yield from (f"--{key}={_quote(value)}" for key, value in options.items() if value is not None)
    yield from ("--open-mode=append", "--requeue")
    yield from job_resources.extra_options
    if array is not None:
        yield f"--array={array}"


def _quote(value: object) -> str:
    """Return a value quoted as sbatch parses it in a script."""
    text = str(value)
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return text if re.fullmatch(r"[\w./:@%,+-]+", text) else f'"{escaped}"'


def _compute_signal_lead_seconds(time: str | None) -> int:
    """Return the seconds before the time limit at which a job is signalled to save.

    At most a quarter of the time limit.
    """
    limit = None if time is None else _parse_time_limit(time)
    return _SIGNAL_LEAD_SECONDS if limit is None else min(_SIGNAL_LEAD_SECONDS, limit // 4)


def _parse_time_limit(time: str) -> int | None:
    """Return a time limit in seconds; None for no limit.

    Raises:
        ConfigError: The time limit is malformed.
    """
    if time.upper() in _UNLIMITED:
        return None
    match = _TIME_PATTERN.fullmatch(time)
    if match is None:
        raise ConfigError(
            f"--time {time}: invalid time limit. Give {_TIME_FORMATS}, for example 4:00:00."
        )
    parts = {name: int(text or 0) for name, text in match.groupdict().items()}
    minutes = (parts["days"] * 24 + parts["hours"] + parts["h"]) * 60
    minutes += parts["minutes"] + parts["m"] + parts["only"]
    return minutes * 60 + parts["seconds"] + parts["s"] or None
