"""Fixtures: small models, and servers of them in this process and in others."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.commands.serve.model_facts import build_model_facts
from finetune.commands.serve.predictor_model import PredictorModel
from finetune.inference.predictor import Predictor
from finetune.models.backbone import create_network
from finetune.server.application import ModelServer
from finetune.server.intake.limits import ServerLimits
from finetune.server.served_model import SamplePhoto
from finetune.types import ReadOptions
from tests.support.networks import randomise, set_batch_norm_statistics

CLASSES = ("ant", "bée", "wasp, <b>red</b>")
TEMPERATURE = 9.5
"""Divisor by which the probabilities of photos differ in all classes."""

LIMITS = ServerLimits(
    max_bytes=200_000, max_pixels=1_000_000, max_files=4, queue_size=8, batch_size=4
)
URL = "http://127.0.0.1:8000"

Starter = Callable[..., TestClient]


def encode(image: Image.Image, file_format: str = "PNG") -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return buffer.getvalue()


def create_photo(seed: int = 0, size: tuple[int, int] = (40, 36)) -> bytes:
    """Return a PNG of noise with a mean colour that depends on the seed."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (size[1], size[0], 3))
    pixels[..., seed % 3] += 100
    return encode(Image.fromarray(pixels.astype(np.uint8)))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of a small network whose probabilities depend on the image."""
    built = create_network("test_resnet", num_classes=len(CLASSES), weights="random", image_size=32)
    randomise(built.module)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    set_batch_norm_statistics(built.module, images)
    card = ModelCard(
        "test_resnet",
        {},
        CLASSES,
        replace(built.spec, input_size=(3, 32, 32)),
        facts={"train_images": dict.fromkeys(CLASSES, 20)},
        temperature=TEMPERATURE,
    )
    folder = tmp_path_factory.mktemp("served") / "insects" / "bundle"
    save_bundle(built.module, card, folder)
    return folder


@pytest.fixture(scope="session")
def bundle(model_folder: Path) -> ModelBundle:
    """Return the model of ``model_folder``."""
    return load_model(model_folder)


def create_model(bundle: ModelBundle, *, limits: ServerLimits = LIMITS) -> PredictorModel:
    """Return a model for a server, with one sample photo."""
    predictor = Predictor(bundle, device="cpu", options=ReadOptions(max_pixels=limits.max_pixels))
    facts = build_model_facts(bundle.card, runtime="torch", device="cpu")
    photo = create_photo(1)
    samples = [SamplePhoto("one.png", "bée", photo, photo)]
    return PredictorModel(predictor, facts=facts, samples=samples, saliency_bundle=bundle)


@pytest.fixture
def start(bundle: ModelBundle) -> Iterator[Starter]:
    """Return a function that starts a server in this process and returns its client."""
    servers: list[ModelServer] = []
    clients = ExitStack()

    def run(
        model: object = None, *, limits: ServerLimits = LIMITS, token: str | None = None
    ) -> TestClient:
        served = create_model(bundle, limits=limits) if model is None else model
        server = ModelServer(served, limits=limits, version="1.0", token=token)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return clients.enter_context(TestClient(server.app, base_url=URL))

    yield run
    clients.close()
    for server in servers:
        server.stop()
