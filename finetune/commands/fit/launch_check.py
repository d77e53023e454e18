"""Compares what a cluster job started with what was asked for, before anything is done.

A mismatch would train several times, or wait for ever; here it ends at once, with the line that is
right.
"""

import os

from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError


def check_launch(config: Config, launch: LaunchInfo | None) -> LaunchInfo | None:
    """Return the launch that this process belongs to, or None if it stands alone.

    Raises:
        ConfigError: Several machines without a launcher, or other processes than were asked for.
    """
    if launch is None:
        _check_single_process(config)
        return None
    if launch.launcher == "srun":
        _check_gpus(config, tasks=launch.local_world_size, nodes=launch.num_nodes)
    for asked, started, flag in (
        (config.trainer.devices, launch.local_world_size, "--devices"),
        (config.trainer.num_nodes, launch.num_nodes, "--num-nodes"),
    ):
        if asked not in ("auto", started):
            raise ConfigError(
                f"{flag} is {asked}, but {_describe_launch(launch)}. Leave --devices and --num-nodes out: "
                f"they are taken from the launcher. Or start what you mean: {_format_launch_command(config)}"
            )
    return launch


def _check_single_process(config: Config) -> None:
    """Refuse what one process cannot be.

    Raises:
        ConfigError: Says what to start instead.
    """
    nodes = config.trainer.num_nodes
    if nodes != "auto" and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: several machines need a launcher that starts this command "
            f"on each of them: {_format_launch_command(config)}"
        )
    if "SLURM_JOB_ID" not in os.environ:
        return
    if "SLURM_STEP_ID" in os.environ:
        _check_gpus(config, tasks=1, nodes=1)
        return
    machines, tasks = (int(os.environ.get(f"SLURM_{name}") or 1) for name in ("NNODES", "NTASKS"))
    if machines > 1 or (tasks > 1 and config.trainer.devices == "auto"):
        raise ConfigError(
            f"This job has {tasks} tasks on {machines} machines, but srun did not start this "
            f"command: one process alone would train, on one machine. Write in the batch script: "
            f"srun --nodes={machines} --ntasks-per-node={max(1, tasks // machines)} finetune fit … "
            f"Or, for one machine alone, say --devices."
        )


def _check_gpus(config: Config, *, tasks: int, nodes: int) -> None:
    """Compare the GPUs of this machine that the job may use with its tasks.

    Raises:
        ConfigError: Some would be left idle unasked, or tasks would share one.
    """
    if config.trainer.accelerator not in ("auto", "cuda"):
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(shown.split(",")) if shown else int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus > tasks and config.trainer.devices == "auto":
        problem = f"{gpus - tasks} of them would be idle"
        other = f"Or say what you mean: --devices {tasks}"
        other += f", or --devices {gpus} for all of them in one task." if tasks == 1 else "."
    elif 0 < gpus < tasks:
        problem = "each needs one, and sees all of them"
        other = "Ask for --gpus-per-node, not for --gpus-per-task or --gpu-bind."
    else:
        return
    raise ConfigError(
        f"srun started {tasks} {'task' if tasks == 1 else 'tasks'} on this machine, and shows "
        f"{gpus} of its GPUs: {problem}. Start one task for each GPU: srun --nodes={nodes} "
        f"--ntasks-per-node={max(gpus, tasks)} --gpus-per-node={max(gpus, tasks)} finetune fit … "
        f"{other}"
    )


def _describe_launch(launch: LaunchInfo) -> str:
    machines = "machine" if launch.num_nodes == 1 else "machines"
    return (
        f"{launch.launcher} started {launch.local_world_size} processes on each of {launch.num_nodes} "
        f"{machines}"
    )


def _format_launch_command(config: Config) -> str:
    nodes, devices = (
        1 if value == "auto" else value
        for value in (config.trainer.num_nodes, config.trainer.devices)
    )
    return (
        f"srun --nodes={nodes} --ntasks-per-node={devices} finetune fit …, or on each machine "
        f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m finetune fit …"
    )
