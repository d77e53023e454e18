"""Put a run into the queue of a SLURM cluster.

The script is a plain one for ``sbatch``, to be read, kept and submitted again: a library such as
submitit would pickle the call and bring a handling of signals of its own.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.submit.batch_script import (
    JobResources,
    build_sibling_path,
    render_batch_script,
)
from finetune.config.schema import Config
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.system import run_folder
from finetune.system.files import write_text

_SUBMIT_OPTIONS = {
    "--nodes": "--nodes",
    "--ntasks": "--tasks-per-node",
    "--ntasks-per-node": "--tasks-per-node",
    "--gpus-per-node": "--gpus-per-node",
    "--gpus": "--gpus-per-node",
    "--cpus-per-task": "--cpus-per-task",
    "--partition": "--partition",
    "--time": "--time",
    "--account": "--account",
}
"""Options of sbatch that what is checked here depends on, and those of submit in their place."""


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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        paths = {name: str(getattr(self, name)) for name in ("run_dir", "script", "log")}
        return {"job_id": self.job_id, **paths, "text": self.text}


def submit(
    config: Config, fit_args: Sequence[str], job_resources: JobResources, *, dry_run: bool = False
) -> Submission:
    """Write the batch script of a run beside its folder, and submit it.

    Args:
        config: What ``fit_args`` come to; its path is known to exist.
        fit_args: DATA, options and key=value of ``fit``, without the run folder.
        job_resources: Of the cluster.
        dry_run: Write and submit nothing.

    Raises:
        ConfigError: What is asked for contradicts itself, or sbatch refuses it or is not there.
        ModelError: A file of weights is not there.
        RunFolderError: The folder holds something else than a run, or its job is in the queue.
        StorageError: The script cannot be written.
    """
    _check_request(config, job_resources)
    run_dir = _resolve_run_dir(config)
    text = render_batch_script(fit_args, job_resources, run_dir)
    script, log = build_sibling_path(run_dir, ".sbatch"), build_sibling_path(run_dir, ".log")
    job_id = None
    if not dry_run:
        _check_sbatch()
        _check_queue(script)
        write_text(script, text)
        job_id = _run_sbatch(script)
    return Submission(job_id, run_dir, script, log, text)


def _check_request(config: Config, job_resources: JobResources) -> None:
    """Raise where the run or its job could only fail."""
    if job_resources.gpus_per_node and job_resources.tasks_per_node not in (
        None,
        job_resources.gpus_per_node,
    ):
        raise ConfigError(
            f"--tasks-per-node {job_resources.tasks_per_node} and --gpus-per-node {job_resources.gpus_per_node} "
            f"differ: a process has one GPU. Leave --tasks-per-node out."
        )
    for option in job_resources.extra_options:
        if not option.startswith("-") or not option.isprintable():
            raise ConfigError(
                f"--sbatch {option!r} is no option of sbatch. Write it as --sbatch=--mem=64G."
            )
        own = _SUBMIT_OPTIONS.get(option.partition("=")[0])
        if own is not None:
            raise ConfigError(f"--sbatch={option}: say that with submit's own {own}.")
    _check_processes(config, job_resources)
    weights = config.model.weights
    if weights not in ("hub", "random") and not Path(weights).expanduser().exists():
        raise ModelError(
            f"The weights {weights} do not exist. Give a file or folder, 'hub' or 'random'."
        )


def _check_processes(config: Config, job_resources: JobResources) -> None:
    trainer, per_node = config.trainer, job_resources.processes_per_node
    for key, value, wanted in (
        ("devices", trainer.devices, per_node),
        ("num_nodes", trainer.num_nodes, job_resources.nodes),
    ):
        if value not in ("auto", wanted):
            raise ConfigError(
                f"trainer.{key} is {value}, but the job asks for {job_resources.nodes} nodes with "
                f"{per_node} processes each. Leave it out: it comes from --nodes and "
                f"--gpus-per-node or --tasks-per-node."
            )
    processes = job_resources.nodes * per_node
    shards = processes * (
        1 if trainer.accumulate_grad_batches == "auto" else trainer.accumulate_grad_batches
    )
    if trainer.batch_size != "auto" and trainer.batch_size % shards:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} does not divide by {processes} processes "
            f"({job_resources.nodes} nodes with {per_node} each) times trainer.accumulate_grad_batches="
            f"{trainer.accumulate_grad_batches}. Take a multiple of {shards}."
        )


def _resolve_run_dir(config: Config) -> Path:
    """Return the run folder by its whole path; a run may be there already."""
    assert config.data.path is not None, "checked before"
    data = Path(config.data.path).expanduser()
    name = run_folder.build_default_name(config.model.backbone, data)
    run_dir = Path(config.output or Path("runs") / name).expanduser().absolute()
    if not run_folder.is_run(run_dir):
        run_folder.check_unused(run_dir)
    return run_dir


def _check_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "There is no sbatch on this machine. Submit from a login node of the cluster, or see "
            "the script with --dry-run."
        )


def _check_queue(script: Path) -> None:
    """Raise where a job of the same run is in the queue: both would train in one folder.

    Raises:
        RunFolderError: Names the job.
    """
    if shutil.which("squeue") is None:
        return
    # %o is the script of a job
    done = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i %o"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        job, _, command = line.strip().partition(" ")
        if command == str(script):
            raise RunFolderError(
                f"Job {job} of this run is in the queue already. Wait for it, cancel it with "
                f"scancel {job}, or choose another --output."
            )


def _run_sbatch(script: Path) -> str:
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
