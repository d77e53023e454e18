"""The sides of training images, epoch by epoch, where they are not those of evaluation."""

from finetune.builders.resolve import require_int
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.backbone import Network, accepts_image_size
from finetune.training.schedules.image_size import compute_image_size


def compute_train_image_sizes(config: Config, network: Network) -> list[int]:
    """Return the side of each epoch's images; nothing where all are those of the network.

    Args:
        config: Resolved.
        network: The backbone.

    Raises:
        ConfigError: The network does not take them.
    """
    assert config.data.train_image_size != "auto", "auto is decided before"
    first, last = config.data.train_image_size
    side = network.spec.input_size[-1]
    if first == last == side:
        return []
    epochs = require_int(config.trainer.epochs)
    sizes = [
        compute_image_size(e, num_epochs=epochs, first=first, last=last) for e in range(epochs)
    ]
    for one in sorted(set(sizes)):
        if not accepts_image_size(network, one):
            raise ConfigError(
                f"data.train_image_size={first},{last}: {config.model.backbone} does not take images of "
                f"{one} pixels when made for {side}. Leave it out."
            )
    return sizes
