"""Cluster environment that passes the ranks of a launch to Lightning."""

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

from finetune.distributed.launch import LaunchInfo


class LaunchEnvironment(ClusterEnvironment):
    """Ranks of a launch, in place of Lightning's detection; starts no process, reads no variable.

    Args:
        launch: Rank of this process; None is a single process, also in an allocation of SLURM.
    """

    def __init__(self, launch: LaunchInfo | None) -> None:
        super().__init__()
        self.launch = launch or LaunchInfo(0, 1, 0, 1, 0, "127.0.0.1", 0, "environment")

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: all processes exist already."""
        return True

    @property
    def main_address(self) -> str:
        """Return the address of the node of rank 0."""
        return self.launch.master_addr

    @property
    def main_port(self) -> int:
        """Return the port on which rank 0 listens."""
        return self.launch.master_port

    @staticmethod
    def detect() -> bool:
        """Return False: Lightning must not select this environment by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of processes on all nodes."""
        return self.launch.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launch defines the world size."""

    def global_rank(self) -> int:
        """Return the rank over all nodes."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: Lightning would compute a wrong rank where ranks alternate between nodes."""

    def local_rank(self) -> int:
        """Return the rank on this node."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """Return the rank of this node."""
        return self.launch.node_rank
