"""Tests of POST /saliency: a picture or a reason, one at a time and within the time limit."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.commands.serve.predictor_model import PredictorModel
from finetune.server.served_model import SaliencyPicture, Upload
from tests.server.conftest import LIMITS, Starter, create_model, create_photo

_TIMEOUT_SECONDS = 0.4

Post = Callable[[], Any]


def test_saliency_is_a_picture_or_a_reason(
    start: Starter, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(bundle)
    client = start(model)
    found = client.post("/saliency", content=create_photo()).json()
    assert found["picture"] is None
    (predicted,) = client.post("/predict", content=create_photo()).json()["predictions"]
    assert found["label"] == predicted["label"]
    assert found["reason"]  # a network of random weights has no map that can be trusted
    assert client.post("/saliency", content=b"text").status_code == 415
    monkeypatch.setattr(model, "draw_saliency", lambda _: SaliencyPicture("bée", b"png"))
    found = client.post("/saliency", content=create_photo()).json()
    assert found == {"label": "bée", "picture": "data:image/png;base64,cG5n", "reason": ""}


def test_saliency_is_off_for_ensembles_and_when_too_slow(
    start: Starter, bundle: ModelBundle
) -> None:
    other = replace(bundle, card=replace(bundle.card, temperature=2.0))
    ensemble = create_model(combine_models([bundle, other]))
    answer = start(ensemble).post("/saliency", content=create_photo()).json()
    assert answer["reason"].startswith("An ensemble has no saliency map")
    slow = create_model(bundle)
    slow._max_saliency_seconds = 0.0
    slow.measure_seconds(2)
    client = start(slow)
    assert client.get("/metadata").json()["has_saliency"] is False
    assert "longer than the server's time limit" in client.post("/saliency").json()["reason"]


def test_saliency_of_one_image_does_not_disturb_predictions(
    start: Starter, bundle: ModelBundle
) -> None:
    client = start()
    before = client.post("/predict?all=true", content=create_photo()).json()
    client.post("/saliency", content=create_photo())
    assert client.post("/predict?all=true", content=create_photo()).json() == before
    assert not bundle.network.training


def test_saliency_takes_one_image(start: Starter) -> None:
    client = start()
    files = [("file", (f"{n}.png", create_photo(n))) for n in range(2)]
    answer = client.post("/saliency", files=files)
    assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_files")
    assert answer.json()["detail"] == "The form has more than 1 file."
    assert client.post("/saliency", files=files[:1]).status_code == 200


class _Drawing:
    """Drawing of pictures that lasts until it is let go, and counts how many go on at once."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.num_drawn = 0
        self.num_at_once = 0
        self._num_active = 0

    def __call__(self, upload: Upload) -> SaliencyPicture:
        self._num_active += 1
        self.num_at_once = max(self.num_at_once, self._num_active)
        self.began.set()
        self.may_end.wait(10)
        self._num_active -= 1
        self.num_drawn += 1
        return SaliencyPicture(upload.name, b"png")


@pytest.fixture
def drawing() -> Iterator[_Drawing]:
    found = _Drawing()
    yield found
    found.may_end.set()


@pytest.fixture
def post(
    start: Starter, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, drawing: _Drawing
) -> Post:
    """Return a function that asks a server with a short time limit for a picture."""
    model: PredictorModel = create_model(bundle)
    monkeypatch.setattr(model, "draw_saliency", drawing)
    client = start(model, limits=replace(LIMITS, timeout_seconds=_TIMEOUT_SECONDS))
    return lambda: client.post("/saliency", content=create_photo())


def test_second_picture_waits_for_its_turn(post: Post, drawing: _Drawing) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post) for _ in range(2)]
        drawing.began.wait(10)
        drawing.may_end.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert (drawing.num_drawn, drawing.num_at_once) == (2, 1)


def test_pictures_beyond_the_time_limit_are_refused(post: Post, drawing: _Drawing) -> None:
    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        answers = [future.result() for future in [pool.submit(post) for _ in range(3)]]
    assert time.monotonic() - begin < 5
    found = sorted((answer.status_code, answer.json()["reason"]) for answer in answers)
    assert found == [(429, "saliency_busy"), (429, "saliency_busy"), (503, "timeout")]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert post().status_code == 429, "the thread is still at work"
    drawing.may_end.set()
    assert post().status_code == 200
    assert drawing.num_drawn == 2, "those that were refused are not drawn"
