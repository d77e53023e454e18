"""Start of a Weights & Biases run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.distributed import signals
from finetune.errors import TrackingError
from finetune.system.run_paths import RunFolder


def start_wandb_run(
    run_dir: Path,
    *,
    run_id: str,
    mode: str,
    project: str,
    entity: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    group: str | None = None,
    job_type: str | None = None,
) -> Any:
    """Start a W&B run; the same id continues the same run.

    Args:
        run_dir: Folder in which W&B writes its files.
        run_id: Id of the W&B run; kept in the run folder.
        mode: "offline" or "online".
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        name: Displayed name of the run.
        tags: Tags of the run.
        group: Group of runs that W&B shows together; None for none.
        job_type: Kind of the run, by which W&B filters; None for none.

    Raises:
        TrackingError: W&B refuses to start, or its server cannot be reached.
    """
    import wandb

    try:
        with signals.block():  # W&B's service process must outlive the signal that stops the run
            return wandb.init(
                dir=run_dir,
                id=run_id,
                resume="allow",
                mode="offline" if mode == "offline" else "online",
                project=project,
                entity=entity,
                name=name,
                group=group,
                job_type=job_type,
                tags=list(tags),
                settings=wandb.Settings(silent=True, console="off"),
            )
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrackingError(
            f"Weights & Biases failed to start: {reason}. Log in with `wandb login`, or use "
            f"--wandb offline; resume the run: {RunFolder(run_dir).resume_command}"
        ) from error
