"""Fixtures shared by several packages."""

from __future__ import annotations

import gc
import os
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# small layers do not benefit from more threads; read on the first import of torch
os.environ.setdefault("OMP_NUM_THREADS", "1")
# without bytecode each worker and each process of a test would compile torch and the tests again
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

# pytest-xdist sets it for its workers; messages are wrapped where the width is known
os.environ.pop("COLUMNS", None)

import numpy as np
import pytest
from PIL import Image

import finetune
from tests.support.helpers import write_images

if TYPE_CHECKING:  # torch and Lightning are not paid for where one light file is tested
    from finetune.commands.fit.fit import FitResult

sys.dont_write_bytecode = False  # of this process, which has read the variable
CLASSES = ("bée", "fly", "wasp, red")
"""Classes of ``insects`` in index order; two names contain special characters."""


def pytest_collection_finish() -> None:
    """Leave what collection loaded out of the garbage collections of commands.

    Each would take half a second, and a run collects whenever its trained layers change.
    """
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Seed torch before each fixture, so that its weights do not depend on the order of tests."""
    _seed_torch(f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param_index', 0)}]")
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Seed torch before each test, which fails for every order or for none."""
    _seed_torch(item.nodeid)


def _seed_torch(name: str) -> None:
    """Seed the default generator of torch, where it is imported, with a checksum of ``name``.

    pytest-randomly shuffles tests and seeds Python and NumPy, not torch.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(zlib.crc32(name.encode()))


def pytest_unconfigure() -> None:
    """Let extension modules find at exit that what they gave is returned."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set the cache folder to a temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 24 training and 15 validation images; never change it."""
    from tests.support.runs import write_photos

    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with photos and weights."""
    from tests.support.runs import write_photos, write_weights

    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 6 cats and 4 dogs, 12 x 10 pixels each."""
    names = [f"cat/{i}.png" for i in range(6)] + [f"dog/{i}.png" for i in range(4)]
    return write_images(tmp_path / "photos", *names)


@pytest.fixture
def few_penalties(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit linear heads with two penalties instead of eleven, which takes most of a small run.

    For tests to which the penalty does not matter. Slow ones may compare with another process.
    """
    if request.node.get_closest_marker("slow") is not None:
        return
    from finetune.probe import cross_validation, penalty_search

    search = penalty_search.search_penalty

    def search_two(fitter: Any, images: Any, penalties: Any, **options: Any) -> Any:
        return search(fitter, images, penalties[2:6:3] or penalties, **options)

    for module in (penalty_search, cross_validation):
        monkeypatch.setattr(module, "search_penalty", search_two)


@pytest.fixture(autouse=True)
def _no_shared_wandb_service() -> Iterator[None]:
    """End the service process that W&B shares with child processes through the environment.

    A process that resumes a killed run would find the run's id in use there.
    """
    yield
    if "WANDB_SERVICE" in os.environ:
        import wandb

        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 16, 12 and 10 images of three colours under noise; never change it."""
    root = tmp_path_factory.mktemp("data") / "insects"
    random = np.random.default_rng(7)
    for number, (name, count) in enumerate(zip(CLASSES, (16, 12, 10), strict=True)):
        (root / name).mkdir(parents=True)
        for image in range(count):
            pixels = random.integers(0, 170, (36, 40, 3))
            pixels[..., number] += 60
            file = root / name / f"{name} {image:02}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


@pytest.fixture(scope="session")
def trained(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a finished run of two epochs on ``insects``, with a test split; never change it."""
    config = finetune.Config.model_validate(
        {
            "data": {"path": str(insects), "image_size": 32, "test_fraction": 0.2},
            "model": {"backbone": "resnet10t", "weights": "random"},
            "unfreeze": {"name": "head_first", "params": {"epochs": 1}},
            "augment": {"name": "none"},
            "optim": {"lr": 0.01},
            "trainer": {
                "epochs": 2,
                "batch_size": 8,
                "accelerator": "cpu",
                "precision": "32-true",
                "devices": 1,
            },
            "output": str(tmp_path_factory.mktemp("runs") / "insects"),
        }
    )
    return finetune.fit(config)
