"""Share of one process in the parts of a prediction."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.data.streams.stream_image import StreamImage
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError

NUM_TASKS_VARIABLE = "FINETUNE_NUM_TASKS"
"""Variable with the number of tasks of a job array, numbered from 1, as it was first submitted."""

_ARRAY_TASK = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True, slots=True)
class WorkShare:
    """Number of this process, and of all processes that share the work.

    Attributes:
        process: Number of this process, from 0.
        num_processes: Number of processes.
        local_rank: Number of this process on its node.
        local_processes: Number of processes on its node.
    """

    process: int = 0
    num_processes: int = 1
    local_rank: int = 0
    local_processes: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.num_processes == 1


@dataclass(frozen=True, slots=True)
class ShardRule:
    """Rule by which images belong to shards.

    A shard is a set of files that hold images, such as tar files, if there are enough of them:
    then no process reads a file of others. Else the hash of the name decides.

    Attributes:
        num_shards: Number of shards.
        num_containers: Number of files that hold several images; 0 for image files.
    """

    num_shards: int
    num_containers: int

    @property
    def is_by_container(self) -> bool:
        """Whether a shard is a set of files that hold images."""
        return self.num_containers >= self.num_shards > 1

    def get_container_shard(self, container: int) -> int:
        """Return the shard of a file that holds images."""
        return container % self.num_shards

    def get_shard(self, image: StreamImage) -> int:
        """Return the shard of an image."""
        if self.num_shards == 1:
            return 0
        if self.is_by_container and image.container is not None:
            return self.get_container_shard(image.container)
        name = image.name.encode(errors="surrogateescape")
        digest = hashlib.blake2b(name, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.num_shards

    def get_owner(self, shard: int, part: int, num_processes: int) -> int:
        """Return the process that writes a part.

        With as many processes as shards each has one shard. A rerun by more processes divides the
        parts of a shard, unless that would read its files several times.
        """
        unit = shard if self.is_by_container else part * self.num_shards + shard
        return unit % num_processes


def detect_share(env: Mapping[str, str] = os.environ) -> WorkShare:
    """Return the share of this process by torchrun, srun or a SLURM job array.

    Each task of an array is a process, or several with srun in each of them. Tasks that are
    numbered without gaps share all of the work. Those of an array with gaps, such as the repair
    ``sbatch --array=3,7``, are not told which of them there are: each takes the share of its
    number among all tasks that ``submit`` has written into the script, else up to the last one.

    Raises:
        ConfigError: A variable of the environment is invalid.
    """
    launch = detect_launch()
    rank, world_size = (0, 1) if launch is None else (launch.rank, launch.world_size)
    local_rank, local_size = (
        (0, 1) if launch is None else (launch.local_rank, launch.local_world_size)
    )
    if env.get(_ARRAY_TASK):
        number, count = _parse_array(env)
        rank, world_size = number * world_size + rank, count * world_size
    return WorkShare(rank, world_size, local_rank, local_size)


def _parse_array(env: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this task of a job array, from 0, and the number of tasks.

    Raises:
        ConfigError: A variable of the environment is no number.
    """
    try:
        task = int(env[_ARRAY_TASK])
        first, step, count = (
            int(env.get(f"SLURM_ARRAY_TASK_{key}") or 1) for key in ("MIN", "STEP", "COUNT")
        )
        last = int(env.get("SLURM_ARRAY_TASK_MAX") or first + (count - 1) * step)
        num_tasks = int(env.get(NUM_TASKS_VARIABLE) or 0)
    except ValueError as error:
        raise ConfigError(
            f"The variables of the job array are no numbers ({error}). Unset {_ARRAY_TASK} to "
            f"predict with one process."
        ) from error
    step = max(1, step)
    if (last - first) // step + 1 == count and (task - first) % step == 0:
        return (task - first) // step, count
    start = min(first, 1)
    return task - start, max(num_tasks, last - start + 1)
