"""Fixtures of the tests of the predict verb."""

from pathlib import Path

import pytest
import timm
import torch

from finetune.bundle.bundle import save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.types import PreprocessSpec
from tests.support.helpers import write_images

SPEC = PreprocessSpec((3, 32, 32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def write_bundle(
    folder: Path, *, seed: int, classes: tuple[str, ...] = ("ant", "bee", "cat")
) -> Path:
    """Write the bundle of a small network with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = timm.create_model("test_resnet", num_classes=3).eval()
    save_bundle(network, ModelCard("test_resnet", {}, classes, SPEC), folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of a small network with random weights; never change it."""
    return write_bundle(tmp_path_factory.mktemp("tiny") / "bundle", seed=0)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle like ``tiny`` with other weights; never change it."""
    return write_bundle(tmp_path_factory.mktemp("other") / "bundle", seed=1)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 40 images, two of them damaged; never change it."""
    folder = write_images(
        tmp_path_factory.mktemp("many") / "photos", *(f"{number:02}.png" for number in range(40))
    )
    (folder / "07.png").write_bytes(b"no image")
    (folder / "31.png").write_bytes((folder / "30.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on digits with statistics for ``--reject``; never change it."""
    from tests.support.rejection_runs import fit_digits

    return fit_digits(tmp_path_factory.mktemp("digits"))
