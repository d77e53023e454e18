"""Small convolutional network of the classic digit tutorials, as a backbone of one's own.

Two 3 x 3 convolutions, max pooling, dropout and a dense layer before the classifier. Run
``finetune`` from this folder, or put the folder on ``PYTHONPATH``:

    finetune fit digits/ --backbone small_cnn:create_model

See docs/guides/custom-networks.md for what a function such as ``create_model`` has to return.
"""

from collections import OrderedDict

from torch import nn


def create_model(
    num_classes: int,
    in_chans: int = 3,
    *,
    width: int = 32,
    hidden: int = 128,
    img_size: int = 28,
    drop_rate: float = 0.5,
) -> nn.Module:
    """Return the network with random weights.

    Its last layer is a linear classifier, so that ``finetune`` needs to be told nothing else: the
    layer groups are ``features``, ``dense`` and the head.

    Args:
        num_classes: Number of classes.
        in_chans: Channels of the images.
        width: Channels of the first convolution; the second has twice as many.
        hidden: Width of the dense layer.
        img_size: Side of the images in pixels, which the dense layer depends on.
        drop_rate: Dropout rate before the classifier; half of it applies after the pooling.
    """
    features = nn.Sequential(
        nn.Conv2d(in_chans, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(drop_rate / 2),
        nn.Flatten(),
    )
    side = (img_size - 4) // 2
    dense = nn.Sequential(
        nn.Linear(2 * width * side * side, hidden), nn.ReLU(), nn.Dropout(drop_rate)
    )
    network = nn.Sequential(
        OrderedDict(features=features, dense=dense, classifier=nn.Linear(hidden, num_classes))
    )
    network.pretrained_cfg = {  # type: ignore[assignment] # read by finetune, as timm's are
        "input_size": (in_chans, img_size, img_size),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5,) * in_chans,
        "std": (0.5,) * in_chans,
    }
    return network
