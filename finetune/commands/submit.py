"""Put a run into the queue of a SLURM cluster.

The script is a plain one for ``sbatch``, to be read, kept and submitted again: a library such as
submitit would pickle the call and bring a handling of signals of its own.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from finetune import run_folder
from finetune.config.schema import Config
from finetune.errors import ConfigError, ModelError
from finetune.storage import write_text

BODY = "batch_body.sh"
"""What every batch script ends with, the shipped ones in ``scripts/slurm`` too."""

_AUTO_BATCH_SIZES = (32, 64, 128)
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


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that is in the queue, or could be.

    Attributes:
        job_id: SLURM's number; None after a dry run.
        run_dir: Where the run goes.
        script: The batch script.
        log: What the job prints.
        text: Of the script.
    """

    job_id: str | None
    run_dir: Path
    script: Path
    log: Path
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        paths = {name: str(getattr(self, name)) for name in ("run_dir", "script", "log")}
        return {"job_id": self.job_id, **paths, "text": self.text}


def submit(
    config: Config, words: Sequence[str], asked: Resources, *, dry_run: bool = False
) -> Submission:
    """Write the batch script of a run beside its folder, and submit it.

    Args:
        config: What ``words`` come to; its path is known to exist.
        words: DATA, options and key=value of ``fit``, without the run folder.
        asked: Of the cluster.
        dry_run: Write and submit nothing.

    Raises:
        ConfigError: What is asked for contradicts itself, or sbatch refuses it or is not there.
        ModelError: A file of weights is not there.
        RunFolderError: The folder holds something else than a run.
        StorageError: The script cannot be written.
    """
    _check(config, asked)
    run_dir = _run_dir(config)
    text = _head(words, asked, run_dir) + body()
    script, log = _beside(run_dir, ".sbatch"), _beside(run_dir, ".log")
    job_id = None
    if not dry_run:
        _check_sbatch()
        write_text(script, text)
        job_id = _submitted(script)
    return Submission(job_id, run_dir, script, log, text)


def body() -> str:
    """Return what every batch script ends with."""
    return resources.files(__package__).joinpath(BODY).read_text(encoding="utf-8")


def _head(words: Sequence[str], asked: Resources, run_dir: Path) -> str:
    """Return a script's own part: what it asks for, where the run goes, and the words of fit."""
    finetune = shlex.join([sys.executable, "-m", "finetune"])
    lines = [
        "#!/bin/bash",
        "# Written by finetune submit. To submit it again, where the run goes on:",
        f"#   sbatch {shlex.quote(str(_beside(run_dir, '.sbatch')))}",
        *(f"#SBATCH {option}" for option in _options(asked, run_dir)),
        "",
        f"run={shlex.quote(str(run_dir))}",
        'again="Submitted once more it goes on."',
        f'[ -n "${{FINETUNE:-}}" ] || FINETUNE={shlex.quote(finetune)}',
        f"set -- {shlex.join(words)}",
    ]
    return "\n".join(lines) + "\n\n"


def _options(asked: Resources, run_dir: Path) -> Iterator[str]:
    """Yield the options of sbatch; of two that are the same the later one holds."""
    log = str(_beside(run_dir, ".log")).replace("%", "%%")
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
    return minutes * 60 + part["seconds"] + part["s"]


def _check(config: Config, asked: Resources) -> None:
    """Raise where the run or its job could only fail."""
    if asked.gpus_per_node and asked.tasks_per_node not in (None, asked.gpus_per_node):
        raise ConfigError(
            f"--tasks-per-node {asked.tasks_per_node} and --gpus-per-node {asked.gpus_per_node} "
            f"differ: a process has one GPU. Leave --tasks-per-node out."
        )
    for option in asked.extra:
        if not option.startswith("-") or not option.isprintable():
            raise ConfigError(
                f"--sbatch {option!r} is no option of sbatch. Write it as --sbatch=--mem=64G."
            )
    _check_processes(config, asked)
    weights = config.model.weights
    if weights not in ("hub", "random") and not Path(weights).expanduser().exists():
        raise ModelError(
            f"The weights {weights} do not exist. Give a file or folder, 'hub' or 'random'."
        )


def _check_processes(config: Config, asked: Resources) -> None:
    trainer, per_node = config.trainer, asked.processes_per_node
    for key, value, wanted in (
        ("devices", trainer.devices, per_node),
        ("num_nodes", trainer.num_nodes, asked.nodes),
    ):
        if value not in ("auto", wanted):
            raise ConfigError(
                f"trainer.{key} is {value}, but the job asks for {asked.nodes} nodes with "
                f"{per_node} processes each. Leave it out: it comes from the job."
            )
    processes = asked.nodes * per_node
    shards = processes * (1 if trainer.accumulate == "auto" else trainer.accumulate)
    sizes = _AUTO_BATCH_SIZES if trainer.batch_size == "auto" else (trainer.batch_size,)
    if all(size % shards for size in sizes):
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} does not divide by {processes} processes "
            f"({asked.nodes} nodes with {per_node} each) times trainer.accumulate="
            f"{trainer.accumulate}. Take a multiple of {shards}."
        )


def _run_dir(config: Config) -> Path:
    """Return the run folder by its whole path; a run may be there already."""
    assert config.data.path is not None, "checked before"
    data = Path(config.data.path).expanduser()
    name = run_folder.default_name(config.model.backbone, data)
    run_dir = Path(config.output or Path("runs") / name).expanduser().absolute()
    if not (run_dir / "config.yaml").is_file():
        run_folder.check_free(run_dir)
    return run_dir


def _beside(run_dir: Path, suffix: str) -> Path:
    return run_dir.with_name(run_dir.name + suffix)


def _check_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "There is no sbatch on this machine. Submit from a login node of the cluster, or see "
            "the script with --dry-run."
        )


def _submitted(script: Path) -> str:
    """Return the number of the job."""
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines()]
        raise ConfigError(
            f"sbatch refuses the job: {'; '.join(filter(None, lines))}. Mend the options of "
            f"finetune submit, or {script} and submit it with sbatch."
        )
    return done.stdout.strip().partition(";")[0]
