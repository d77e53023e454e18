"""Check of the processes that a launcher started against the config, before any other work.

A mismatch would train several runs or wait forever; the check fails at once, with the command to
use.
"""

import os

from finetune.config.schema import TrainerConfig
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError
from finetune.units import format_count


def check_launch(trainer: TrainerConfig, launch: LaunchInfo | None) -> LaunchInfo | None:
    """Return the launch of this process; None for a single process.

    Args:
        trainer: Section of the config, as given.
        launch: Detected launch; None without a launcher.

    Raises:
        ConfigError: Several nodes are requested without a launcher, or the launcher started other
            processes than requested.
    """
    if launch is None:
        _check_single_process(trainer)
        return None
    if launch.launcher == "srun":
        _check_gpus(trainer, tasks=launch.local_world_size, nodes=launch.num_nodes)
    for requested, started, flag in (
        (trainer.devices, launch.local_world_size, "--devices"),
        (trainer.num_nodes, launch.num_nodes, "--num-nodes"),
    ):
        if requested not in ("auto", started):
            raise ConfigError(
                f"{flag} {requested} does not match the launch: {_describe_launch(launch)}. Leave "
                f"--devices and --num-nodes out, which then follow the launcher, or start as many "
                f"processes as requested: {_format_launch_command(trainer)}"
            )
    return launch


def _check_single_process(trainer: TrainerConfig) -> None:
    """Check that a single process is enough for the config and the SLURM job.

    Raises:
        ConfigError: It is not; the message has the right command.
    """
    nodes = trainer.num_nodes
    if nodes != "auto" and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs a launcher that starts this command on each node: "
            f"{_format_launch_command(trainer)}"
        )
    if "SLURM_JOB_ID" not in os.environ:
        return
    if "SLURM_STEP_ID" in os.environ:
        _check_gpus(trainer, tasks=1, nodes=1)
        return
    num_nodes, tasks = (int(os.environ.get(f"SLURM_{name}") or 1) for name in ("NNODES", "NTASKS"))
    if num_nodes > 1 or (tasks > 1 and trainer.devices == "auto"):
        raise ConfigError(
            f"This SLURM job has {tasks} tasks on {num_nodes} nodes, but srun did not start this "
            f"command, so a single process would train. In the batch script, use: srun "
            f"--nodes={num_nodes} --ntasks-per-node={max(1, tasks // num_nodes)} finetune fit … "
            f"To train on one node only, add --devices."
        )


def _check_gpus(trainer: TrainerConfig, *, tasks: int, nodes: int) -> None:
    """Check that this node has one visible GPU for each task of the job.

    Raises:
        ConfigError: GPUs would be idle without a request for it, or tasks would share one.
    """
    if trainer.accelerator not in ("auto", "cuda"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(visible.split(",")) if visible else int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus > tasks and trainer.devices == "auto":
        problem = f"{gpus - tasks} of them would be idle"
        alternative = f"If that is intended, add --devices {tasks}"
        alternative += f", or --devices {gpus} for all of them in one task." if tasks == 1 else "."
    elif 0 < gpus < tasks:
        problem = "each task needs its own, and sees all of them"
        alternative = "Request --gpus-per-node, not --gpus-per-task or --gpu-bind."
    else:
        return
    raise ConfigError(
        f"srun started {format_count(tasks, 'task')} on this node, with "
        f"{format_count(gpus, 'GPU')}: {problem}. Start one task per GPU: srun --nodes={nodes} "
        f"--ntasks-per-node={max(gpus, tasks)} --gpus-per-node={max(gpus, tasks)} finetune fit … "
        f"{alternative}"
    )


def _describe_launch(launch: LaunchInfo) -> str:
    return (
        f"{launch.launcher} started {format_count(launch.local_world_size, 'process')} on each of "
        f"{format_count(launch.num_nodes, 'node')}"
    )


def _format_launch_command(trainer: TrainerConfig) -> str:
    nodes, devices = (
        1 if value == "auto" else value for value in (trainer.num_nodes, trainer.devices)
    )
    return (
        f"srun --nodes={nodes} --ntasks-per-node={devices} finetune fit …, or on each node "
        f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m finetune fit …"
    )
