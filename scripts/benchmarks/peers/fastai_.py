"""fastai as in its documentation: ``vision_learner(...).fine_tune(4)``.

https://docs.fast.ai/tutorial.vision.html: images of 460 pixels, aug_transforms to 224, a frozen
epoch and then all layers. Batches of 32, as the datasets are small; the default is 64.
"""

from pathlib import Path

import torch
import torchvision
from common import install_torchvision_weights, parse_options, write_predictions
from fastai.vision.all import (
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)


def main() -> None:
    """Train and predict."""
    options = parse_options()
    install_torchvision_weights(options.backbone, options.weights)
    set_seed(options.seed)
    loaders = ImageDataLoaders.from_folder(
        options.data,
        train="train",
        valid="val",
        bs=32,
        item_tfms=Resize(460),
        batch_tfms=aug_transforms(size=224),
        seed=options.seed,
    )
    learner = vision_learner(
        loaders, getattr(torchvision.models, options.backbone), metrics=accuracy
    )
    with learner.no_bar():
        learner.fine_tune(options.epochs or 4)
        scores, _ = learner.get_preds(dl=loaders.valid)
    vocabulary = list(loaders.vocab)
    files = [Path(item).relative_to(options.data / "val") for item in loaders.valid.items]
    write_predictions(
        options,
        {
            file.as_posix(): vocabulary[int(best)]
            for file, best in zip(files, torch.argmax(scores, dim=1), strict=True)
        },
    )


if __name__ == "__main__":
    main()
