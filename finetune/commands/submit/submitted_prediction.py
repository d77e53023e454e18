"""Submission of a prediction in parts to a SLURM cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.submit.batch_script import (
    JobResources,
    build_sibling_path,
    render_prediction_script,
)
from finetune.commands.submit.submit import (
    check_queue,
    check_resources,
    check_sbatch,
    run_sbatch,
)
from finetune.system.files import write_text


@dataclass(frozen=True, slots=True)
class PredictionSubmission:
    """Batch job of a prediction, submitted unless it is a dry run.

    Attributes:
        job_id: SLURM job ID; None for a dry run.
        folder: Folder of the parts.
        script: Path of the batch script.
        log: Path of the output of the job, or of each task of an array.
        num_tasks: Number of tasks.
        script_text: Text of the batch script.
    """

    job_id: str | None
    folder: Path
    script: Path
    log: Path
    num_tasks: int
    script_text: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "job_id": self.job_id,
            "output": str(self.folder),
            "script": str(self.script),
            "log": str(self.log),
            "num_tasks": self.num_tasks,
            "script_text": self.script_text,
        }


def submit_prediction(
    predict_args: Sequence[str],
    folder: Path,
    job_resources: JobResources,
    *,
    num_tasks: int = 1,
    dry_run: bool = False,
) -> PredictionSubmission:
    """Write the batch script of a prediction next to the folder of its parts, and submit it.

    The tasks of a job array share the images. A task that is stopped is requeued, and writes the
    parts that are missing; so does the whole job if it is submitted again.

    Args:
        predict_args: Models, images and options of ``predict``, without ``--shards``.
        folder: Folder of the parts.
        job_resources: Resources of each task.
        num_tasks: Number of tasks.
        dry_run: Whether to write and submit nothing.

    Raises:
        ConfigError: Contradicting resources, or sbatch is missing or rejects the job.
        RunFolderError: The same job is already queued.
        StorageError: The script cannot be written.
    """
    check_resources(job_resources)
    folder = folder.expanduser().absolute()
    words = [*predict_args, "--shards", str(folder)]
    text = render_prediction_script(words, job_resources, folder, num_tasks=num_tasks)
    script = build_sibling_path(folder, ".sbatch")
    log = build_sibling_path(folder, ".task-%a.log" if num_tasks > 1 else ".log")
    job_id = None
    if not dry_run:
        check_sbatch()
        check_queue([script])
        write_text(script, text)
        job_id = run_sbatch(script)
    return PredictionSubmission(job_id, folder, script, log, num_tasks, text)
