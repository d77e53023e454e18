"""The sides of training images, epoch by epoch, where they are not those of evaluation."""

from finetune.builders.resolve import number
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.backbone import Network, takes_size
from finetune.training.schedules.image_size import training_size


def training_sizes(config: Config, network: Network) -> list[int]:
    """Return the side of each epoch's images; nothing where all are those of the network.

    Args:
        config: Resolved.
        network: The backbone.

    Raises:
        ConfigError: The network does not take them.
    """
    assert config.data.train_sizes != "auto", "auto is decided before"
    first, last = config.data.train_sizes
    side = network.spec.input_size[-1]
    if first == last == side:
        return []
    epochs = number(config.trainer.epochs)
    sizes = [training_size(e, num_epochs=epochs, first=first, last=last) for e in range(epochs)]
    for one in sorted(set(sizes)):
        if not takes_size(network, one):
            raise ConfigError(
                f"data.train_sizes={first},{last}: {config.model.backbone} does not take images of "
                f"{one} pixels when made for {side}. Leave it out."
            )
    return sizes
