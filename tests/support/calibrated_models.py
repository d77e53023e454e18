"""Small models with calibration and a target prior, and photos of several kinds, for exports."""

from pathlib import Path

import timm
import torch

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
    network = timm.create_model(backbone, num_classes=len(CLASSES), in_chans=spec.input_size[0])
    randomise(network)
    generator = torch.Generator().manual_seed(3)
    set_batch_norm_statistics(network, torch.randn(16, *spec.input_size, generator=generator))
    head = network.get_classifier()
    with torch.no_grad():  # probabilities that differ much between images
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
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
