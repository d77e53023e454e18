"""Tests of the description of a model, its samples, metrics and pages, and of what they refuse."""

import json
import re
from importlib.resources import files

import pytest

from finetune.bundle.bundle import ModelBundle
from tests.server.conftest import CLASSES, LIMITS, TEMPERATURE, Starter, create_model, create_photo


def test_metadata_describes_the_model_and_names_no_folder(
    start: Starter, bundle: ModelBundle
) -> None:
    tree = start().get("/metadata").json()
    assert tree["title"] == "ant, bée, wasp, <b>red</b>"
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
    saliency = schema["paths"]["/saliency"]["post"]["requestBody"]["content"]
    assert saliency["multipart/form-data"]["schema"]["properties"]["file"]["type"] == "string"
    assert schema["paths"].keys() >= {"/health", "/metadata", "/metrics", "/saliency"}


def test_openapi_has_the_errors_and_the_keys_of_all_answers(start: Starter) -> None:
    client = start()
    schema = client.get("/openapi.json").json()
    models = schema["components"]["schemas"]
    for model in models.values():
        for name, entry in model["properties"].items():
            assert entry.get("description"), name
    assert models["MetadataResponse"]["properties"].keys() == client.get("/metadata").json().keys()
    answer = client.post("/saliency", content=create_photo()).json()
    assert models["SaliencyResponse"]["properties"].keys() == answer.keys()
    answer = client.post("/predict?all=true", content=create_photo()).json()
    assert models["ImagePrediction"]["properties"].keys() >= answer["predictions"][0].keys()
    statuses = {
        "/predict": "200 400 401 403 408 413 415 421 422 429 500 503",
        "/metadata": "200 401 421 422 500",
        "/samples/{number}": "200 401 404 421 422 500",
        "/health": "200 421 422 500 503",
    }
    for path, expected in statuses.items():
        (operation,) = schema["paths"][path].values()
        assert sorted(operation["responses"]) == expected.split(), path
        for status, response in operation["responses"].items():
            if status[0] in "45" and path != "/health":
                (content,) = response["content"].values()
                assert content["schema"]["$ref"].endswith("/ErrorBody")
    metrics = schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert metrics.keys() == {"text/plain"}
    for status in ("404", "405"):
        assert f"- {status}: " in schema["info"]["description"]


def test_docs_page_shows_the_errors_and_the_keys_of_answers(start: Starter) -> None:
    text = start().get("/docs").text
    for status in (403, 404, 405, 421):
        assert f'<th scope="row">{status}</th>' in text
    for key in ("predictions[].top[].probability", "picture", "limits.max_bytes", "[].name"):
        assert f"<code>{key}</code>" in text


def test_docs_page_shows_each_route_and_loads_nothing_from_elsewhere(start: Starter) -> None:
    text = start().get("/docs").text
    for path in ("POST /predict", "GET /health", "GET /metadata", "GET /metrics"):
        assert path in text
    assert "//" not in text.replace("http://HOST:PORT", "")


@pytest.mark.parametrize(
    ("request_line", "detail"),
    [
        ("POST /predict?top-k=2", "top-k: unknown parameter. Did you mean 'top_k'?"),
        ("POST /predict?all=true&all=false", "all: given more than once."),
        ("POST /saliency?label=ant", "label: unknown parameter. /saliency takes none."),
        ("GET /metrics?name[]=a", "name[]: unknown parameter. /metrics takes none."),
        ("GET /samples/0?size=9", "size: unknown parameter. /samples/0 takes none."),
    ],
)
def test_unknown_query_parameters_are_refused(
    start: Starter, request_line: str, detail: str
) -> None:
    method, path = request_line.split()
    answer = start().request(method, path, content=create_photo() if method == "POST" else None)
    assert answer.status_code == 422
    assert answer.json() == {"reason": "invalid_parameter", "detail": detail}


def test_other_address_is_not_found_and_not_redirected(start: Starter) -> None:
    client = start()
    for path in ("/health/", "/predict/", "/docs/"):
        answer = client.get(path, follow_redirects=False)
        assert (answer.status_code, answer.json()["reason"]) == (404, "not_found")


@pytest.mark.parametrize(
    "path", ["/", "/health", "/metadata", "/metrics", "/samples/0", "/docs", "/assets/page.js"]
)
def test_head_is_answered_as_get_without_the_content(start: Starter, path: str) -> None:
    client = start()
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert "head" not in client.get("/openapi.json").json()["paths"].get(path, {})


def test_page_loads_what_the_server_has_and_nothing_from_elsewhere(start: Starter) -> None:
    client = start()
    found = {"./assets/page.js"}
    pending = re.findall(r'(?:src|href)="(assets/[^"]+)"', client.get("/").text)
    assert "assets/page.js" in pending
    while pending:
        answer = client.get(f"/{pending.pop()}")
        assert answer.status_code == 200
        modules = re.findall(r'^import [^"]*"([^"]+)";$', answer.text, re.MULTILINE)
        assert all(name.startswith("./") for name in modules)
        pending += [f"assets/{name[2:]}" for name in modules if name not in found]
        found |= set(modules)
    folder = files("finetune.server") / "assets"
    scripts = {f"./{one.name}" for one in folder.iterdir() if one.name.endswith(".js")}
    assert {name.replace("assets/", "") for name in found} == scripts  # each is used


def test_wrong_method_names_the_right_one(start: Starter) -> None:
    answer = start().head("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
