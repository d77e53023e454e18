"""Which process of a run this is: found in what torchrun, srun or a cluster's operator has set.

Lightning finds SLURM by other rules: a job that bears the name "bash" or "interactive" trains as
many independent copies as it has tasks. Imports nothing heavy.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune.errors import ConfigError

JOIN_COMMAND = "join-run"
"""What a process that this one starts is called with."""

Launcher = Literal["torchrun", "srun", "environment"]


@dataclass(frozen=True, slots=True)
class LaunchInfo:
    """This process among those of a run.

    Attributes:
        rank: Over all machines.
        world_size: Processes of all machines.
        local_rank: On this machine.
        local_world_size: Processes of this machine, and of each other one.
        node_rank: Of this machine.
        master_addr: Host name or address of the machine of rank 0.
        master_port: Where rank 0 listens, or will; 0 lets the system choose, on rank 0 alone.
        launcher: Who started the process.
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
        """Machines."""
        return self.world_size // self.local_world_size


def detect_launch() -> LaunchInfo | None:
    """Return which process of a run this is, or None if it stands alone.

    Raises:
        ConfigError: The machines have different numbers of processes, or a variable is missing.
    """
    env = os.environ
    try:
        if "TORCHELASTIC_RUN_ID" in env or int(env.get("WORLD_SIZE") or 1) > 1:
            return _parse_torch_env(env)
        if int(_read_step_variable(env, "NUM_TASKS", "SLURM_NTASKS")) > 1:
            return _parse_slurm_env(env)
    except KeyError as error:
        raise ConfigError(
            f"This process is one of several, but {error.args[0]} is not set in its environment. "
            f"Start it with torchrun or srun. Or, if it is to be alone: unset WORLD_SIZE."
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        found = ", ".join(f"{name}={env[name]}" for name in numbers if name in env)
        raise ConfigError(
            f"What a launcher has set in the environment is no number: {found}. Start with "
            f"torchrun or srun, or unset them: the process is then alone."
        ) from error
    return None


def detect_rank() -> int | None:
    """Return this process's rank, or None if it stands alone.

    Also where the rest of what a launcher has set makes no sense, which somebody else says.
    """
    try:
        launch = detect_launch()
    except ConfigError:
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        return int(rank) if rank.isdecimal() else None
    return None if launch is None else launch.rank


def is_nonzero_rank() -> bool:
    """Tell whether another process of the same run speaks for this one."""
    return bool(detect_rank())


def _parse_torch_env(env: Mapping[str, str]) -> LaunchInfo:
    """Return what torchrun, an operator of Kubernetes or our own launcher has set."""
    rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    local_world_size = int(env.get("LOCAL_WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK={rank} in the environment, but WORLD_SIZE={world_size} has the ranks 0 to "
            f"{world_size - 1}. Each process needs a rank of its own, as torchrun gives it."
        )
    if world_size % local_world_size:
        raise ConfigError(
            f"{world_size} processes with {local_world_size} on this machine: every machine needs "
            f"as many. Give torchrun the same --nproc-per-node everywhere."
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
    """Return the task of a step that this process is."""
    sizes = _parse_tasks_per_node(env)
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"srun started {', '.join(map(str, sizes))} tasks on the {len(sizes)} machines: every "
            f"machine needs as many. Use srun --nodes={len(sizes)} "
            f"--ntasks-per-node={max(1, sum(sizes) // len(sizes))} finetune fit …"
        )
    # steps of a job, and jobs that share a machine, must not meet; below the ports that the system
    # gives away
    number = int(env["SLURM_JOB_ID"]) + 1000 * int(env.get("SLURM_STEP_ID", "0"))
    return LaunchInfo(
        rank=int(env["SLURM_PROCID"]),
        world_size=sum(sizes),
        local_rank=int(env["SLURM_LOCALID"]),
        local_world_size=sizes[0],
        node_rank=int(env["SLURM_NODEID"]),
        master_addr=env.get("MASTER_ADDR") or _find_first_host(env),
        master_port=int(env.get("MASTER_PORT") or 15000 + number % 15000),
        launcher="srun",
    )


def _read_step_variable(env: Mapping[str, str], name: str, job_variable: str) -> str:
    """Return a variable of the step, which salloc's own shell has too; 1 outside of a step."""
    if "SLURM_STEP_ID" not in env:
        return "1"
    return env.get(f"SLURM_STEP_{name}") or env.get(job_variable) or "1"


def _parse_tasks_per_node(env: Mapping[str, str]) -> list[int]:
    """Return the tasks of each machine from a text like ``2(x3),1``."""
    sizes: list[int] = []
    for part in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        sizes += [int(tasks)] * int(times or 1)
    return sizes


def _find_first_host(env: Mapping[str, str]) -> str:
    """Return the first machine of a list like ``gpu[003-007,12],login``."""
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    hosts = env.get("SLURM_STEP_NODELIST") or env["SLURM_NODELIST"]
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None, "matches at least nothing"
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])
