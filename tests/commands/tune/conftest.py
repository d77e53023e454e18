"""Fixtures of the tests of ``finetune tune``."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.config.load import build_config
from finetune.config.schema import Config

pytest.importorskip("optuna")

NUM_IMAGES = 16
"""Images of each class."""


def write_classes(root: Path, *, num_images: int = NUM_IMAGES, first_seed: int = 3) -> Path:
    """Write class folders of three faint colours under noise."""
    random = np.random.default_rng(first_seed)
    for number, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir(parents=True)
        for image in range(num_images):
            pixels = random.integers(0, 190, (32, 32, 3))
            pixels[..., number] += 25
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{image:02}.png")
    return root


def build_scratch_config(data: Path, output: Path, **assignments: object) -> Config:
    """Return the config of a study from random weights, whose default rate is far too low."""
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config(
        {},
        assignments={
            "data.path": str(data),
            "data.image_size": 32,
            "data.num_workers": 0,
            "model.backbone": "test_resnet",
            "model.weights": "random",
            "augment.name": "none",
            "optim.lr": 1e-7,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.batch_size": 8,
            "trainer.epochs": 2,
            "output": str(output),
            **given,
        },
    )


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders without splits; never change them."""
    return write_classes(tmp_path_factory.mktemp("data") / "classes")
