"""Tests of who may use a server, and of the headers that protect its pages."""

import pytest

from finetune.errors import ConfigError
from finetune.server.connections.access_control import check_access, is_loopback
from tests.server.conftest import Starter, create_photo

_TOKEN = "correct horse".replace(" ", "-")
_PHOTO = create_photo()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Bearer wrong-token"}, id="wrong"),
        pytest.param({"Authorization": f"Bearer {_TOKEN}x"}, id="longer"),
        pytest.param({"Authorization": f"Basic {_TOKEN}"}, id="scheme"),
        pytest.param({"Authorization": "Bearer \xe9"}, id="not ASCII"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/predict", "/saliency", "/metadata", "/metrics", "/samples", "/samples/0", "/nothing"]
)
def test_token_is_needed_for_everything_about_the_model(
    start: Starter, path: str, headers: dict[str, str]
) -> None:
    client = start(token=_TOKEN)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = client.request(
        "POST" if path in ("/predict", "/saliency") else "GET", path, headers=raw
    )
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["reason"] == "no_token"


def test_token_opens_the_server_also_by_another_host_name(start: Starter) -> None:
    client = start(token=_TOKEN)
    headers = {"Authorization": f"bearer {_TOKEN}", "Host": "models.example.com"}
    assert client.post("/predict", content=_PHOTO, headers=headers).status_code == 200
    assert client.get("/metadata", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json", "/assets/page.js"])
def test_page_and_health_need_no_token_and_tell_nothing_of_the_model(
    start: Starter, path: str
) -> None:
    answer = start(token=_TOKEN).get(path)
    assert answer.status_code == 200
    assert "bée" not in answer.text
    assert "insects" not in answer.text


@pytest.mark.parametrize(
    ("host", "is_served"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:9", True),
        ("[::1]:8000", True),
        ("models.localhost", True),
        ("attacker.example:8000", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost.attacker.example", False),
        ("attacker.example:80@127.0.0.1", True),
        ("127.0.0.1@attacker.example", False),
        ("192.168.0.5:8000", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_served(
    start: Starter, host: str, is_served: bool
) -> None:
    client = start()
    for answer in (
        client.get("/metadata", headers={"Host": host}),
        client.get("/", headers={"Host": host}),
        client.post("/predict", content=_PHOTO, headers={"Host": host}),
    ):
        assert answer.status_code == (200 if is_served else 421)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://attacker.example", 403),
        ("http://127.0.0.1:8001", 403),
        ("https://127.0.0.1:8000", 403),
        ("null", 403),
    ],
)
def test_other_web_pages_may_not_post(start: Starter, origin: str, status: int) -> None:
    headers = {"Origin": origin, "Host": "127.0.0.1:8000"}
    answer = start().post("/predict", content=_PHOTO, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_every_response_has_protective_headers(start: Starter) -> None:
    client = start()
    answers = (
        client.get("/"),
        client.get("/metadata"),
        client.get("/nothing"),
        client.get("/", headers={"Host": "attacker.example"}),
    )
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("localhost.example.com", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_other_addresses_need_a_token_of_some_length() -> None:
    check_access("127.0.0.1", None)
    check_access("0.0.0.0", "0123456789abcdef")
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: other machines .* FINETUNE_TOKEN"):
        check_access("0.0.0.0", None)
    for token in ("short", "", "eleven chars", "pässword-long"):
        with pytest.raises(ConfigError, match="at least 8 ASCII letters"):
            check_access("127.0.0.1", token)
