"""Runs that an agent of a W&B sweep starts."""

import os
from pathlib import Path

from finetune.commands.fit.run_tracking.run_origin import RUN_ID_VARIABLE, SWEEP_VARIABLE
from finetune.config.schema import Config


def adopt_sweep_run(config: Config) -> Config:
    """Return the config of a run with the run folder of the sweep's run, if an agent started it.

    W&B requeues a run that was preempted: an agent then issues the same command with the same run
    id, and the run continues. A run folder that is given stays as it is.
    """
    sweep, run_id = os.environ.get(SWEEP_VARIABLE), os.environ.get(RUN_ID_VARIABLE)
    if not sweep or not run_id or config.output is not None:
        return config
    folder = Path("runs") / f"sweep-{sweep}" / run_id
    # keeps which fields were set explicitly
    return config.model_copy(update={"output": str(folder), "resume": "auto"})
