"""Compares what a cluster job started with what was asked for, before anything is done."""

from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.training.launch import Launch, outer_launch, processes_per_node


def checked_launch(config: Config) -> Launch | None:
    """Return the launch that this process belongs to.

    Raises:
        ConfigError: Several machines without a launcher, or several processes without a name.
    """
    launch = outer_launch()
    if launch is None and config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: several machines need a launcher that "
            f"starts this command on each of them, srun or torchrun."
        )
    if launch is not None:
        _check_world_size(config, launch)
    if launch is not None and config.output is None:
        raise ConfigError(
            f"{launch.world_size} processes run this command and need one run folder: add "
            f"--output runs/NAME."
        )
    return launch


def _check_world_size(config: Config, launch: Launch) -> None:
    """Raise unless the launcher started as many processes as the run will have.

    Raises:
        ConfigError: Names both numbers; a mismatch would train twice, or wait for ever.
    """
    devices = config.trainer.devices
    if devices == "auto":
        devices = processes_per_node()
    wanted = devices * config.trainer.num_nodes
    if wanted != launch.world_size:
        raise ConfigError(
            f"The launcher started {launch.world_size} processes, but --devices {devices} times "
            f"--num-nodes {config.trainer.num_nodes} is {wanted}. Start one process a device on "
            f"each machine, as in: srun --nodes=N --ntasks-per-node=D finetune fit … --devices D "
            f"--num-nodes N"
        )
