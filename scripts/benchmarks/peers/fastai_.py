"""fastai as in its documentation: ``vision_learner(...).fine_tune(4)``.

https://docs.fast.ai/tutorial.vision.html: images of 460 pixels, aug_transforms to 224, a frozen
epoch and then all layers. Batches of 32, as the datasets are small; the default is 64. It keeps its
last epoch, so that it trains on all images and validates on none. torchvision's network, whose
layers fastai splits into three groups, where there is one of this name, else timm's.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import (
    check_loaded,
    install_torchvision_weights,
    is_in_torchvision,
    load_state_dict,
    parse_options,
    write_predictions,
)
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    Resize,
    aug_transforms,
    get_image_files,
    parent_label,
    set_seed,
    vision_learner,
)


def main() -> None:
    """Train and predict."""
    options = parse_options()
    set_seed(options.seed)
    size = options.image_size
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=lambda items: (list(range(len(items))), []),
        get_y=parent_label,
        item_tfms=Resize(round(460 / 224 * size)),
        batch_tfms=aug_transforms(size=size),
    )
    loaders = block.dataloaders(options.data / "train", bs=32)
    learner = build_learner(loaders, options)
    test = sorted(get_image_files(options.data / "test"))
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(options.epochs or 4)
        scores, _ = learner.get_preds(dl=loaders.test_dl(test))
    vocabulary = list(loaders.vocab)
    write_predictions(
        options,
        {
            Path(file).relative_to(options.data / "test").as_posix(): vocabulary[int(best)]
            for file, best in zip(test, torch.argmax(scores, dim=1), strict=True)
        },
    )


def build_learner(loaders: Any, options: Namespace) -> Any:
    """Return a learner that starts from the given weights."""
    if is_in_torchvision(options):
        install_torchvision_weights(options.backbone, options.weights)
        learner = vision_learner(loaders, getattr(torchvision.models, options.backbone))
    else:
        overlay = {**options.cfg, "file": str(options.weights.resolve())}
        learner = vision_learner(
            loaders, options.backbone, pretrained_cfg_overlay=overlay, **options.kwargs
        )
    check_loaded([learner.model[0]], load_state_dict(options.weights))
    return learner


if __name__ == "__main__":
    main()
