"""The other processes of a run: started here, or found to be started by a cluster job."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import TrainingError

JOIN_VERB = "join-run"
_EXIT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among those that torchrun or srun started.

    Attributes:
        rank: Over all machines.
        world_size: Processes of all machines.
        name: The same in all of them, another at the next start.
    """

    rank: int
    world_size: int
    name: str


def outer_launch() -> Launch | None:
    """Return who started this process among several, or None if it stands alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        parts = (env["TORCHELASTIC_RUN_ID"], env.get("TORCHELASTIC_RESTART_COUNT", "0"))
        # the run id alone is "none" at every plain start; the port is another each time
        name = "-".join([*parts, env.get("MASTER_PORT", "0")])
        return Launch(int(env["RANK"]), int(env["WORLD_SIZE"]), name)
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        ids = (env["SLURM_JOB_ID"], env["SLURM_STEP_ID"], env.get("SLURM_RESTART_COUNT", "0"))
        return Launch(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), "-".join(ids))
    return None


def processes_per_node() -> int:
    """Return how many processes a launcher started on this machine; 1 without a launcher."""
    env = os.environ
    if outer_launch() is None:
        return 1
    if "LOCAL_WORLD_SIZE" in env:
        return int(env["LOCAL_WORLD_SIZE"])
    return int(env["SLURM_NTASKS"]) // int(env.get("SLURM_NNODES", "1"))


@contextmanager
def other_ranks(run_dir: Path, *, count: int) -> Iterator[None]:
    """Run ``count`` further processes of a run on this machine while the block lasts.

    This process is rank 0; each other one reads the run folder and joins.

    Raises:
        TrainingError: One of them failed although this one ended well.
    """
    if count == 0:
        yield
        return
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    before = dict(os.environ)
    os.environ.update(common, LOCAL_RANK="0")
    # the threads of all processes together should not outnumber the cores
    threads = before.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // (count + 1)))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "finetune", JOIN_VERB, str(run_dir)],
            env={**before, **common, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, count + 1)
    ]
    try:
        yield
        codes = [child.wait(_EXIT_SECONDS) for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        for name in (*common, "LOCAL_RANK"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
    if any(codes):
        raise TrainingError(f"Processes of the run ended with codes {codes}; see their messages.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
