"""Submission of a run to a SLURM cluster.

The job is a plain script for ``sbatch`` that can be read, kept and submitted again; a library such
as submitit would pickle the call and install its own signal handling.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.commands.submit.batch_script import (
    FOLDS_SUFFIX,
    JobResources,
    build_sibling_path,
    render_batch_script,
)
from finetune.config.schema import Config
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.system import run_folder
from finetune.system.files import write_text
from finetune.system.given_paths import exists

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
"""Options of sbatch that the checks here depend on, to the option of submit that replaces each."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Batch job of a run, submitted unless it is a dry run.

    Attributes:
        job_id: SLURM job ID; None for a dry run.
        run_dir: Run folder.
        script: Path of the batch script.
        log: Path of the job's output.
        script_text: Text of the batch script.
        folds: Job array of the folds of a cross-validation, after which this job writes the model;
            None without one.
    """

    job_id: str | None
    run_dir: Path
    script: Path
    log: Path
    script_text: str
    folds: "Submission | None" = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "job_id": self.job_id,
            "run_dir": str(self.run_dir),
            "script": str(self.script),
            "log": str(self.log),
            "script_text": self.script_text,
            "folds": None if self.folds is None else self.folds.to_json(),
        }


def submit(
    config: Config, fit_args: Sequence[str], job_resources: JobResources, *, dry_run: bool = False
) -> Submission:
    """Write the batch script of a run next to its run folder, and submit it.

    The folds of a cross-validation are the tasks of a job array. A second job starts after them,
    however they ended, trains what they have left, and writes the model.

    Args:
        config: Config that ``fit_args`` describe; its data path exists.
        fit_args: DATA, options and KEY=VALUE of ``fit``, without the run folder.
        job_resources: Resources of the job.
        dry_run: Whether to write and submit nothing.

    Raises:
        ConfigError: Contradicting settings, or sbatch is missing or rejects the job.
        ModelError: The weights file does not exist.
        RunFolderError: The run folder is not empty and not a run, or its job is already queued.
        StorageError: The script cannot be written.
    """
    _check_request(config, job_resources)
    run_dir = _resolve_run_dir(config)
    num_folds = config.cross_validation.num_folds
    folds = None
    if num_folds is not None and config.cross_validation.fold is None:
        array_text = render_batch_script(fit_args, job_resources, run_dir, num_folds=num_folds)
        array_script = build_sibling_path(run_dir, f"{FOLDS_SUFFIX}.sbatch")
        array_log = build_sibling_path(run_dir, ".fold-%a.log")
        folds = Submission(None, run_dir, array_script, array_log, array_text)
    text = render_batch_script(fit_args, job_resources, run_dir)
    script, log = build_sibling_path(run_dir, ".sbatch"), build_sibling_path(run_dir, ".log")
    job_id = None
    if not dry_run:
        check_sbatch()
        options: tuple[str, ...] = ()
        check_queue([script] if folds is None else [folds.script, script])
        write_text(script, text)
        if folds is not None:
            write_text(folds.script, folds.script_text)
            folds = replace(folds, job_id=run_sbatch(folds.script))
            options = (f"--dependency=afterany:{folds.job_id}",)
        job_id = _run_last_sbatch(script, *options, folds=folds)
    return Submission(job_id, run_dir, script, log, text, folds)


def _check_request(config: Config, job_resources: JobResources) -> None:
    """Check for settings with which the job or the run would fail."""
    check_resources(job_resources)
    _check_processes(config, job_resources)
    weights = config.model.weights
    if weights not in ("hub", "random") and not exists(Path(weights).expanduser()):
        raise ModelError(
            f"The weights {weights} do not exist. Give a file, a folder, 'hub' or 'random'."
        )


def check_resources(job_resources: JobResources) -> None:
    """Check the resources of a job.

    Raises:
        ConfigError: They contradict each other, or an option of sbatch is not allowed.
    """
    if job_resources.gpus_per_node and job_resources.tasks_per_node not in (
        None,
        job_resources.gpus_per_node,
    ):
        raise ConfigError(
            f"--tasks-per-node {job_resources.tasks_per_node} and --gpus-per-node "
            f"{job_resources.gpus_per_node} differ: each process uses one GPU. Leave out "
            f"--tasks-per-node."
        )
    for option in job_resources.extra_options:
        if not option.startswith("-") or not option.isprintable():
            raise ConfigError(
                f"--sbatch {option!r} is not an option of sbatch. Example: --sbatch=--mem=64G"
            )
        own = _SUBMIT_OPTIONS.get(option.partition("=")[0])
        if own is not None:
            raise ConfigError(f"--sbatch={option} cannot be used: use the option {own} of submit.")


def _check_processes(config: Config, job_resources: JobResources) -> None:
    trainer, per_node = config.trainer, job_resources.processes_per_node
    for key, value, expected in (
        ("devices", trainer.devices, per_node),
        ("num_nodes", trainer.num_nodes, job_resources.nodes),
    ):
        if value not in ("auto", expected):
            raise ConfigError(
                f"trainer.{key}={value} contradicts the job, which has {job_resources.nodes} nodes "
                f"with {per_node} processes each. Leave it out: it follows from --nodes and "
                f"--gpus-per-node or --tasks-per-node."
            )
    processes = job_resources.nodes * per_node
    accumulate = trainer.accumulate_grad_batches
    divisor = processes * (1 if accumulate == "auto" else accumulate)
    if trainer.batch_size != "auto" and trainer.batch_size % divisor:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} is not divisible by {processes} processes "
            f"({job_resources.nodes} nodes with {per_node} each) times "
            f"trainer.accumulate_grad_batches={accumulate}. Use a multiple of {divisor}."
        )


def _resolve_run_dir(config: Config) -> Path:
    """Return the absolute path of the run folder, which may hold a run to resume."""
    assert config.data.path is not None, "checked by build_run_config"
    data = Path(config.data.path).expanduser()
    name = run_folder.build_default_name(config.model.backbone, data)
    run_dir = Path(config.output or Path("runs") / name).expanduser().absolute()
    if not run_folder.is_run(run_dir):
        run_folder.check_unused(run_dir)
    return run_dir


def check_sbatch() -> None:
    """Check that sbatch is installed.

    Raises:
        ConfigError: It is not.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch was not found on this machine. Submit from a login node of the cluster, or "
            "print the script with --dry-run."
        )


def check_queue(scripts: Sequence[Path]) -> None:
    """Check that no job of the same run is queued: both would train in one folder.

    Raises:
        RunFolderError: There is such a job.
    """
    if shutil.which("squeue") is None:
        return
    # %F is the ID of a job, for an array task that of the array; %o the path of the batch script
    process = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%F %o"],
        capture_output=True,
        text=True,
        check=False,
    )
    jobs = [line.strip().partition(" ") for line in process.stdout.splitlines()]
    found = (job_id for path in scripts for job_id, _, command in jobs if command == str(path))
    queued = list(dict.fromkeys(found))
    if queued:
        jobs_are = f"Job {queued[0]} of this run is"
        if len(queued) > 1:
            jobs_are = f"Jobs {' and '.join(queued)} of this run are"
        raise RunFolderError(
            f"{jobs_are} already queued. Wait for the end, cancel with scancel "
            f"{' '.join(queued)}, or choose another --output."
        )


def _run_last_sbatch(script: Path, *options: str, folds: Submission | None) -> str:
    """Submit the job that ends the run, and return its ID.

    Raises:
        ConfigError: sbatch rejects the job; the message names the jobs that it has accepted.
    """
    try:
        return run_sbatch(script, *options)
    except ConfigError as error:
        if folds is None:
            raise
        raise ConfigError(
            f"{error} Job {folds.job_id}, which trains the folds, is queued: cancel it with "
            f"scancel {folds.job_id}, or submit the job after it with sbatch {options[0]} {script}."
        ) from error


def run_sbatch(script: Path, *options: str) -> str:
    """Submit a script, and return the job ID.

    Raises:
        ConfigError: sbatch rejects the job; the message quotes its errors.
    """
    process = subprocess.run(
        ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        lines = [line.removeprefix("sbatch: error: ") for line in process.stderr.splitlines()]
        raise ConfigError(
            f"sbatch rejected the job: {'; '.join(filter(None, lines))}. Change the options of "
            f"finetune submit, or edit {script} and submit it with sbatch."
        )
    return process.stdout.strip().partition(";")[0]
