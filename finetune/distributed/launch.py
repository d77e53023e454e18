"""Launch detection: rank and world size from the environment of torchrun, srun or an operator.

Lightning detects SLURM by other rules: in a job named "bash" or "interactive" it trains one
independent model for each task. This module imports nothing heavy.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune.errors import ConfigError

JOIN_COMMAND = "join-run"
"""Command of the worker processes that the local launcher starts."""

Launcher = Literal["torchrun", "srun", "environment"]


@dataclass(frozen=True, slots=True)
class LaunchInfo:
    """Rank of this process and size of its run.

    Attributes:
        rank: Rank over all nodes.
        world_size: Number of processes on all nodes.
        local_rank: Rank on this node.
        local_world_size: Number of processes on each node.
        node_rank: Rank of this node.
        master_addr: Host name or address of the node of rank 0.
        master_port: Port on which rank 0 listens; 0, on rank 0 only, lets the system choose.
        launcher: Program that started the process.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_addr: str
    master_port: int
    launcher: Launcher

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.local_world_size


def detect_launch() -> LaunchInfo | None:
    """Return rank and size of the launch that this process belongs to, or None without one.

    Raises:
        ConfigError: The nodes have different numbers of processes, or an environment variable is
            missing or not a number.
    """
    env = os.environ
    try:
        if "TORCHELASTIC_RUN_ID" in env or int(env.get("WORLD_SIZE") or 1) > 1:
            return _parse_torch_env(env)
        if int(_read_step_variable(env, "NUM_TASKS", "SLURM_NTASKS")) > 1:
            return _parse_slurm_env(env)
    except KeyError as error:
        raise ConfigError(
            f"The environment describes a launch of several processes, but {error.args[0]} is not "
            f"set. Start the processes with torchrun or srun; for a single process, unset "
            f"WORLD_SIZE."
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        variables = ", ".join(f"{name}={env[name]}" for name in numbers if name in env)
        raise ConfigError(
            f"An environment variable of the launch is not an integer: {variables}. Start the "
            f"processes with torchrun or srun; for a single process, unset these variables."
        ) from error
    return None


def detect_rank() -> int | None:
    """Return the rank of this process, or None if it does not belong to a launch.

    The rank is returned even if the other launch variables are invalid; ``detect_launch`` reports
    those.
    """
    try:
        launch = detect_launch()
    except ConfigError:
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        return int(rank) if rank.isdecimal() else None
    return None if launch is None else launch.rank


def is_nonzero_rank() -> bool:
    """Return whether this process has a rank above 0, so that rank 0 writes its output."""
    return bool(detect_rank())


def _parse_torch_env(env: Mapping[str, str]) -> LaunchInfo:
    """Parse the variables of torchrun, a Kubernetes operator or the local launcher."""
    rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    local_world_size = int(env.get("LOCAL_WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK={rank} in the environment is outside of the ranks 0 to {world_size - 1} of "
            f"WORLD_SIZE={world_size}. Give each process its own rank, as torchrun does."
        )
    if world_size % local_world_size:
        raise ConfigError(
            f"WORLD_SIZE={world_size} is not a multiple of LOCAL_WORLD_SIZE={local_world_size}: "
            f"every node needs the same number of processes. Use the same --nproc-per-node on all "
            f"nodes."
        )
    return LaunchInfo(
        rank,
        world_size,
        local_rank=int(env.get("LOCAL_RANK", "0")),
        local_world_size=local_world_size,
        node_rank=int(env.get("GROUP_RANK", str(rank // local_world_size))),
        master_addr=env["MASTER_ADDR"],
        master_port=int(env["MASTER_PORT"]),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment",
    )


def _parse_slurm_env(env: Mapping[str, str]) -> LaunchInfo:
    """Parse the variables of a SLURM job step."""
    sizes = _parse_tasks_per_node(env)
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"srun started {', '.join(map(str, sizes))} tasks on the {len(sizes)} nodes: every "
            f"node needs the same number. Use srun --nodes={len(sizes)} "
            f"--ntasks-per-node={max(1, sum(sizes) // len(sizes))} finetune fit …"
        )
    # a port that differs between the steps of a job and between jobs on the same node, below the
    # range of ephemeral ports
    port_offset = int(env["SLURM_JOB_ID"]) + 1000 * int(env.get("SLURM_STEP_ID", "0"))
    return LaunchInfo(
        rank=int(env["SLURM_PROCID"]),
        world_size=sum(sizes),
        local_rank=int(env["SLURM_LOCALID"]),
        local_world_size=sizes[0],
        node_rank=int(env["SLURM_NODEID"]),
        master_addr=env.get("MASTER_ADDR") or _find_first_host(env),
        master_port=int(env.get("MASTER_PORT") or 15000 + port_offset % 15000),
        launcher="srun",
    )


def _read_step_variable(env: Mapping[str, str], name: str, job_variable: str) -> str:
    """Return a variable of the job step, or "1" outside of one; the shell of salloc is one, too."""
    if "SLURM_STEP_ID" not in env:
        return "1"
    return env.get(f"SLURM_STEP_{name}") or env.get(job_variable) or "1"


def _parse_tasks_per_node(env: Mapping[str, str]) -> list[int]:
    """Return the number of tasks of each node from a string such as ``2(x3),1``."""
    sizes: list[int] = []
    for part in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, repeats = part.rstrip(")").partition("(x")
        sizes += [int(tasks)] * int(repeats or 1)
    return sizes


def _find_first_host(env: Mapping[str, str]) -> str:
    """Return the first node of a list such as ``gpu[003-007,12],login``."""
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    hosts = env.get("SLURM_STEP_NODELIST") or env["SLURM_NODELIST"]
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None, "the pattern matches the empty string"
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])
