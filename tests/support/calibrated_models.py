"""Small models with calibration and a target prior, and photos of several kinds, for exports."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.evaluation.priors import Priors
from finetune.types import PreprocessSpec
from tests.support.networks import randomise, set_batch_norm_statistics
from tests.support.pictures import create_scene, write_jpeg

CLASSES = ("bée", "fly", "wasp, red")
SPEC = PreprocessSpec((3, 64, 64), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "bicubic", 0.9)
_PRIORS = Priors((0.5, 0.3, 0.2), (0.5, 0.3, 0.2), (0.2, 0.3, 0.5))


def save_calibrated_model(
    folder: Path,
    *,
    backbone: str = "test_resnet",
    is_multi_label: bool = False,
    spec: PreprocessSpec = SPEC,
) -> ModelBundle:
    """Write a model whose probabilities differ between images, and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = timm.create_model(backbone, num_classes=len(CLASSES), in_chans=spec.input_size[0])
        images = torch.randn(16, *spec.input_size)
        randomise(network)
        set_batch_norm_statistics(network, images)
        head: Any = network.get_classifier()  # type: ignore[operator]
        torch.nn.init.normal_(head.weight)
    scenes = torch.stack([_normalise(create_scene(seed), spec) for seed in range(8)])
    with torch.no_grad():  # probabilities that differ much between images, far from 0 and 1
        logits = network(scenes)
        head.bias.copy_((head.bias - logits.mean(0)) / logits.std(0))
        head.weight.div_(logits.std(0)[:, None])
    card = ModelCard(
        backbone,
        {} if spec.input_size[0] == 3 else {"in_chans": spec.input_size[0]},
        CLASSES,
        spec,
        temperature=1.5,
        priors=None if is_multi_label else _PRIORS,
        thresholds=(0.3, 0.5, 0.6) if is_multi_label else None,
    )
    save_bundle(network, card, folder)
    return load_model(folder)


def write_kinds_of_photos(folder: Path) -> list[Path]:
    """Write photos of several sizes: PNG in RGB and grey, and a JPEG that lies on its side."""
    folder.mkdir()
    create_scene(1, width=200, height=120).save(folder / "wide.png")
    create_scene(2, width=70, height=150).save(folder / "high.png")
    create_scene(3, width=64, height=64).save(folder / "square.png")
    create_scene(4, width=48, height=40).save(folder / "small.png")
    create_scene(5).convert("L").save(folder / "grey.png")
    write_jpeg(folder / "turned.jpg", create_scene(6), orientation=6, quality=95)
    return sorted(folder.iterdir())


def _normalise(image: Image.Image, spec: PreprocessSpec) -> Tensor:
    """Return the pixels of an image, resized to the input, shape (C, H, W)."""
    channels, height, width = spec.input_size
    pixels = torch.tensor(np.array(image.resize((width, height)))).permute(2, 0, 1)[:channels] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return (pixels - mean) / std
