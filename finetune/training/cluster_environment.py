"""Tells Lightning which process of a run this is, in the place of its own guesses."""

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

from finetune.distributed.launch import LaunchInfo


class LaunchEnvironment(ClusterEnvironment):
    """Tells Lightning the ranks of a launch; it starts no process and asks no variable.

    Args:
        launch: This process; None stands alone, also in an allocation of SLURM.
    """

    def __init__(self, launch: LaunchInfo | None) -> None:
        super().__init__()
        self.launch = launch or LaunchInfo(0, 1, 0, 1, 0, "127.0.0.1", 0, "environment")

    @property
    def creates_processes_externally(self) -> bool:
        """Return that every process is there already."""
        return True

    @property
    def main_address(self) -> str:
        """Return the machine of rank 0."""
        return self.launch.master_addr

    @property
    def main_port(self) -> int:
        """Return the port of rank 0."""
        return self.launch.master_port

    @staticmethod
    def detect() -> bool:
        """Return that Lightning must not choose this by itself."""
        return False

    def world_size(self) -> int:
        """Return the processes of all machines."""
        return self.launch.world_size

    def set_world_size(self, size: int) -> None:
        """Leave it to the launch."""

    def global_rank(self) -> int:
        """Return the rank over all machines."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it to the launch; Lightning computes another where ranks go round the machines."""

    def local_rank(self) -> int:
        """Return the rank on this machine."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """Return the rank of this machine."""
        return self.launch.node_rank
