"""Tests of the description of a model, its samples, saliency pictures, metrics and pages."""

import json
from dataclasses import replace

import pytest

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.server.served_model import SaliencyPicture
from tests.server.conftest import CLASSES, LIMITS, TEMPERATURE, Starter, create_model, create_photo


def test_metadata_describes_the_model_and_names_no_folder(
    start: Starter, bundle: ModelBundle
) -> None:
    tree = start().get("/metadata").json()
    assert tree["title"] == "insects"
    assert tree["classes"] == list(CLASSES)
    assert tree["limits"]["max_pixels"] == LIMITS.max_pixels
    assert tree["preprocessing"]["input_size"] == [3, 32, 32]
    assert tree["temperature"] == TEMPERATURE
    assert tree["versions"].keys() >= {"finetune", "torch"}
    assert [tree["figures"][-1][key] for key in ("label", "value")] == ["Training images", "60"]
    assert any("one of the 3 classes" in note for note in tree["notes"])
    assert str(bundle.source.parent) not in json.dumps(tree)


def test_health_tells_when_the_network_is_gone(start: Starter, bundle: ModelBundle) -> None:
    from starlette.testclient import TestClient

    from finetune.server.application import ModelServer

    server = ModelServer(create_model(bundle), limits=LIMITS, version="1.0")
    client = TestClient(server.app, base_url="http://localhost")
    server.start()
    assert client.get("/health").json() == {"status": "ok"}
    server.stop()
    assert client.get("/health").status_code == 503


def test_samples_are_those_of_the_model(start: Starter) -> None:
    client = start()
    assert client.get("/samples").json() == [{"name": "one.png", "label": "bée"}]
    assert client.get("/samples/0").content == create_photo(1)
    assert client.get("/samples/0/thumbnail").headers["content-type"] == "image/jpeg"
    for path in ("/samples/1", "/samples/-1", "/samples/..%2f..%2fetc%2fpasswd", "/assets/..%2fx"):
        assert client.get(path).status_code in (404, 422)


def test_metrics_count_what_happened(start: Starter) -> None:
    client = start()
    for _ in range(2):
        client.post("/predict", content=create_photo())
    client.post("/predict", content=b"text")
    client.get("/made/up/by/a/client")
    text = client.get("/metrics").text
    for line in (
        "finetune_images_total 2.0",
        'finetune_responses_total{path="/predict",status="200"} 2.0',
        'finetune_responses_total{path="/predict",status="415"} 1.0',
        'finetune_responses_total{path="other",status="404"} 1.0',
        'finetune_rejected_total{reason="no_image"} 1.0',
        'finetune_request_seconds_count{path="/predict"} 3.0',
        "finetune_queue_images 0.0",
        "finetune_batch_images_count 2.0",
    ):
        assert line in text
    assert "made" not in text


def test_openapi_describes_what_a_client_sends(start: Starter) -> None:
    schema = start().get("/openapi.json").json()
    operation = schema["paths"]["/predict"]["post"]
    assert operation["requestBody"]["content"].keys() == {"image/*", "multipart/form-data"}
    assert {p["name"] for p in operation["parameters"]} == {"top_k", "all"}
    assert operation["responses"].keys() >= {"200", "413", "415", "422", "429"}
    assert schema["paths"].keys() >= {"/health", "/metadata", "/metrics", "/saliency"}


def test_docs_page_shows_each_route_and_loads_nothing_from_elsewhere(start: Starter) -> None:
    text = start().get("/docs").text
    for path in ("POST /predict", "GET /health", "GET /metadata", "GET /metrics"):
        assert path in text
    assert "//" not in text.replace("http://HOST:PORT", "")


def test_saliency_is_a_picture_or_a_reason(
    start: Starter, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(bundle)
    client = start(model)
    found = client.post("/saliency", content=create_photo()).json()
    assert found["picture"] is None
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
