"""Tests of micro-batches, the queue, and its limits."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from finetune.errors import DataError
from finetune.server.application import ModelServer
from finetune.server.batching.batcher import Batcher
from finetune.server.served_model import ModelFacts, SaliencyPicture, Upload
from tests.server.conftest import LIMITS, URL, Starter


class MadeModel:
    """Model whose network waits until a test lets it go on."""

    facts = ModelFacts({"classes": ["a", "b"]}, title="made")
    samples = ()
    saliency_reason = "none"

    def __init__(self) -> None:
        self.may_compute = threading.Event()
        self.may_decode = threading.Event()
        self.may_decode.set()
        self.batches: list[list[str]] = []

    def decode(self, upload: Upload) -> str:
        self.may_decode.wait(10)
        if upload.content == b"bad":
            raise DataError("truncated PNG")
        return upload.content.decode()

    def compute(self, inputs: Sequence[str]) -> list[list[float]]:
        self.batches.append(list(inputs))
        self.may_compute.wait(10)
        if "poison" in inputs:
            raise RuntimeError("out of memory")
        return [[float(len(text)), 0.0] for text in inputs]

    def describe(
        self, name: str, probabilities: Sequence[float], *, top_k: int, has_all: bool
    ) -> dict[str, Any]:
        return {"name": name, "value": probabilities[0]}

    def draw_saliency(self, upload: Upload) -> SaliencyPicture:
        raise NotImplementedError


@pytest.fixture
def model() -> MadeModel:
    return MadeModel()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 10 s"
        time.sleep(0.005)


def test_batches_form_while_the_network_is_busy(start: Starter, model: MadeModel) -> None:
    client = start(model)
    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(client.post, "/predict", content=b"0")
        _wait_until(lambda: model.batches == [["0"]])
        rest = [pool.submit(client.post, "/predict", content=b"1" * n) for n in range(1, 7)]
        _wait_until(lambda: "finetune_queue_images 7.0" in client.get("/metrics").text)
        time.sleep(0.05)
        model.may_compute.set()
        values = [r.result().json()["predictions"][0]["value"] for r in (first, *rest)]
    assert values == [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [len(batch) for batch in model.batches] == [1, 4, 2]


def test_full_queue_answers_at_once_and_says_when_to_come_back(
    start: Starter, model: MadeModel
) -> None:
    client = start(model)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/predict", content=b"x") for _ in range(8)]
        _wait_until(lambda: "finetune_queue_images 8.0" in client.get("/metrics").text)
        start_time = time.monotonic()
        answer = client.post("/predict", content=b"x")
        assert time.monotonic() - start_time < 2
        assert (answer.status_code, answer.json()["reason"]) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/health").status_code == 200
        model.may_compute.set()
        assert [one.result().status_code for one in waiting] == [200] * 8
    assert client.post("/predict", content=b"x").status_code == 200


def test_form_with_more_images_than_places_is_told_to_come_later(
    start: Starter, model: MadeModel
) -> None:
    client = start(model)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.post, "/predict", content=b"x") for _ in range(6)]
        _wait_until(lambda: "finetune_queue_images 6.0" in client.get("/metrics").text)
        files = [("file", (str(n), b"x")) for n in range(3)]
        assert client.post("/predict", files=files).status_code == 429
        model.may_compute.set()
        assert [one.result().status_code for one in waiting] == [200] * 6


@pytest.mark.parametrize("part", ["network", "decoding"])
def test_slow_answer_is_given_up_and_its_place_given_back(
    start: Starter, model: MadeModel, part: str
) -> None:
    if part == "decoding":
        model.may_decode.clear()
    client = start(model, limits=replace(LIMITS, timeout_seconds=0.2))
    answer = client.post("/predict", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (503, "timeout")
    assert "Retry-After" in answer.headers
    if part == "decoding":  # the thread still works on it
        assert "finetune_queue_images 1.0" in client.get("/metrics").text
    model.may_decode.set()
    model.may_compute.set()
    _wait_until(lambda: "finetune_queue_images 0.0" in client.get("/metrics").text)
    assert client.post("/predict", content=b"x").status_code == 200


def test_failure_of_one_image_does_not_reach_the_others(start: Starter, model: MadeModel) -> None:
    messages: list[str] = []
    server = ModelServer(model, limits=LIMITS, version="1.0", on_error=messages.append)
    server.start()

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            contents = [b"1", b"poison", b"22", b"bad", b"333"]
            requests = [client.post("/predict", content=content) for content in contents]
            tasks = [asyncio.ensure_future(request) for request in requests]
            await asyncio.sleep(0.1)
            model.may_compute.set()
            return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    server.stop()
    assert [answer.status_code for answer in answers] == [200, 500, 200, 422, 200]
    assert answers[1].json() == {
        "reason": "internal_error",
        "detail": "The network failed: RuntimeError.",
    }
    assert messages == ["The network failed: RuntimeError. out of memory"]


def test_unexpected_error_is_reported_and_the_server_goes_on(
    model: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    server = ModelServer(model, limits=LIMITS, version="1.0", on_error=messages.append)
    server.start()
    model.may_compute.set()
    with TestClient(server.app, base_url=URL, raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(model, "describe", lambda *_, **__: 1 // 0)
            answer = client.post("/predict", content=b"x")
        assert (answer.status_code, answer.json()["reason"]) == (500, "internal_error")
        assert "zero" not in answer.text
        assert client.post("/predict", content=b"x").status_code == 200
    server.stop()
    assert len(messages) == 1
    assert messages[0].startswith("Unexpected ZeroDivisionError: ")


def test_bodies_of_all_requests_together_have_a_limit(start: Starter, model: MadeModel) -> None:
    limits = replace(LIMITS, max_bytes=1000)
    client = start(model, limits=limits)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/predict", content=b"x" * 1000) for _ in range(7)]
        _wait_until(lambda: "finetune_queue_images 7.0" in client.get("/metrics").text)
        last = pool.submit(client.post, "/predict", content=b"x" * 950)
        _wait_until(lambda: "finetune_queue_images 8.0" in client.get("/metrics").text)
        model.may_compute.set()
        assert {one.result().status_code for one in (*waiting, last)} == {200}
    assert client.post("/predict", content=b"x" * 1000).status_code == 200


def test_batcher_waits_for_a_batch_if_it_is_told_to() -> None:
    sizes: list[int] = []

    def compute(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    batcher = Batcher(compute, batch_size=3, max_wait_seconds=5.0)
    batcher.start()
    futures = []
    for number in range(3):
        futures.append(batcher.submit(number))
        time.sleep(0.02)
    assert [future.result(5) for future in futures] == [0, 2, 4]
    assert sizes == [3]
    last = batcher.submit(9)
    batcher.stop(5)
    assert last.result(0) == 18
    assert not batcher.is_alive


def test_batcher_skips_what_was_cancelled() -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def compute(items: list[str]) -> list[str]:
        seen.extend(items)
        begun.set()
        may_go_on.wait(5)
        return items

    batcher = Batcher(compute, batch_size=4)
    batcher.start()
    first = batcher.submit("first")
    assert begun.wait(5)
    second, third = batcher.submit("second"), batcher.submit("third")
    assert second.cancel()
    may_go_on.set()
    assert (first.result(5), third.result(5)) == ("first", "third")
    batcher.stop(5)
    assert seen == ["first", "third"]
