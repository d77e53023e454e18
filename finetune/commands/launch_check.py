"""Compares what a cluster job started with what was asked for, before anything is done.

A mismatch would train several times, or wait for ever; here it ends at once, with the line that is
right.
"""

import os

from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.training.launch import Launch


def check_launch(config: Config, launch: Launch | None) -> Launch | None:
    """Return the launch that this process belongs to, or None if it stands alone.

    Raises:
        ConfigError: Several machines without a launcher, or other processes than were asked for.
    """
    if launch is None:
        _check_alone(config)
        return None
    for asked, started, flag in (
        (config.trainer.devices, launch.local_world_size, "--devices"),
        (config.trainer.num_nodes, launch.num_nodes, "--num-nodes"),
    ):
        if asked not in ("auto", started):
            raise ConfigError(
                f"{flag} is {asked}, but {_started(launch)}. Leave --devices and --num-nodes out: "
                f"they are taken from the launcher. Or start what you mean: {_line(config)}"
            )
    return launch


def _check_alone(config: Config) -> None:
    """Refuse what one process cannot be.

    Raises:
        ConfigError: Says what to start instead.
    """
    nodes = config.trainer.num_nodes
    if nodes != "auto" and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: several machines need a launcher that starts this command "
            f"on each of them: {_line(config)}"
        )
    if "SLURM_JOB_ID" not in os.environ or "SLURM_STEP_ID" in os.environ:
        return
    machines, tasks = (int(os.environ.get(f"SLURM_{name}") or 1) for name in ("NNODES", "NTASKS"))
    if machines > 1 or (tasks > 1 and config.trainer.devices == "auto"):
        raise ConfigError(
            f"This job has {tasks} tasks on {machines} machines, but srun did not start this "
            f"command: one process alone would train, on one machine. Write in the batch script: "
            f"srun --nodes={machines} --ntasks-per-node={max(1, tasks // machines)} finetune fit … "
            f"Or, for one machine alone, say --devices."
        )


def _started(launch: Launch) -> str:
    machines = "machine" if launch.num_nodes == 1 else "machines"
    return (
        f"{launch.by} started {launch.local_world_size} processes on each of {launch.num_nodes} "
        f"{machines}"
    )


def _line(config: Config) -> str:
    nodes, devices = (
        1 if value == "auto" else value
        for value in (config.trainer.num_nodes, config.trainer.devices)
    )
    return (
        f"srun --nodes={nodes} --ntasks-per-node={devices} finetune fit …, or on each machine "
        f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m finetune fit …"
    )
