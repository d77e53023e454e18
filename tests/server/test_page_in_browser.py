"""Tests of the page in a browser: photos in, classes out, on a phone, in the dark, by keyboard."""

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from finetune.bundle.bundle import ModelBundle
from finetune.server.application import ModelServer
from finetune.server.connections.server_process import open_socket
from finetune.server.served_model import SaliencyPicture
from tests.server.conftest import CLASSES, LIMITS, create_model, create_photo
from tests.support.browser import launch_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page

    Opener = Callable[..., Page]

pytestmark = pytest.mark.runs

_TOKEN = "token-of-a-test"
_OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
_DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const kind = name.startsWith("pasted") ? "paste" : "drop";
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
}"""


def build_file(name: str, content: bytes, media_type: str = "image/png") -> "FilePayload":
    """Return a file that a person chooses."""
    return {"name": name, "mimeType": media_type, "buffer": content}


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def addresses(bundle: ModelBundle) -> Iterator[dict[str, str]]:
    """Return the addresses of a server without a token, and of one with a token."""
    model = create_model(bundle)
    picture = model.samples[0].content
    model.draw_saliency = lambda _: SaliencyPicture("bée", picture)  # type: ignore[assignment, method-assign]
    found, stops = {}, []
    for name, token in (("open", None), ("closed", _TOKEN)):
        server = ModelServer(model, limits=LIMITS, version="1.0", token=token)
        server.start()
        bound = open_socket("127.0.0.1", 0)
        found[name] = f"http://127.0.0.1:{bound.getsockname()[1]}"
        config = uvicorn.Config(server.app, log_config=None, ws="none", lifespan="off")
        http = uvicorn.Server(config)
        thread = threading.Thread(target=http.run, kwargs={"sockets": [bound]})
        thread.start()
        stops.append((http, thread, server))
    yield found
    for http, thread, server in stops:
        http.should_exit = True
        thread.join(10)
        server.stop()


@pytest.fixture
def open_page(chromium: "Browser", addresses: dict[str, str]) -> "Iterator[Opener]":
    """Return a function that opens the page, and fail the test on messages of its console."""
    contexts, messages, requests = [], [], []

    def run(name: str = "open", path: str = "/", *, width: int = 1280, **options: Any) -> "Page":
        context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(addresses[name] + path)
        return page

    yield run
    for context in contexts:
        context.close()
    # Chromium itself notes that the server has rejected a file
    assert [text for text in messages if "status of 4" not in text] == []
    own = (*addresses.values(), "blob:", "data:")
    assert [url for url in requests if not url.startswith(own)] == []


@pytest.mark.parametrize("name", ["dropped.png", "pasted.png"])
def test_photo_is_dropped_or_pasted_and_its_classes_are_shown(
    open_page: "Opener", name: str
) -> None:
    page = open_page()
    page.locator("#limits", has_text="1 megapixels").wait_for()
    page.evaluate(_DROP, [name, "image/png", list(create_photo(2))])
    page.locator(".answer").wait_for()
    labels = page.locator(".bar-label").all_inner_texts()
    assert sorted(labels) == sorted(CLASSES)
    assert page.locator(".answer h3").inner_text() == labels[0]
    widths = [box.bounding_box() for box in page.locator(".bar-fill").all()]
    assert [w["width"] for w in widths if w] == sorted([w["width"] for w in widths if w])[::-1]
    status = page.locator("#status")
    assert status.inner_text().startswith(f"{name}: {labels[0]}, ")
    assert status.get_attribute("aria-live") == "polite"
    assert page.locator(".answer img").evaluate("one => one.naturalWidth") == 40


def test_each_photo_has_an_answer_or_the_reason_in_their_order(open_page: "Opener") -> None:
    page = open_page()
    page.locator("#try").wait_for()
    large = build_file("b.png", bytes(LIMITS.max_bytes + 1))
    text = build_file("a.txt", b"hello", "text/plain")
    files = [
        text,
        build_file("0.png", create_photo(0)),
        large,
        build_file("1.png", create_photo(1)),
    ]
    page.set_input_files("#files", files)
    page.locator("#status", has_text="4 photos: 2 with an answer, 2 without an answer.").wait_for()
    names = ["a.txt", "0.png", "b.png", "1.png"]
    assert page.locator("#results .answer-name").all_inner_texts() == names
    reasons = page.locator("#results .message-problem").all_inner_texts()
    assert reasons[0] == "Not an image: text."
    assert reasons[1].startswith("The file is too large")
    assert len(reasons) == 2


def test_answers_of_before_are_set_aside(open_page: "Opener") -> None:
    page = open_page()
    page.locator("#try").wait_for()
    page.set_input_files("#files", build_file("0.png", create_photo(0)))
    page.locator("#results .bars").wait_for()
    assert page.locator("#earlier").is_hidden()
    page.set_input_files("#files", build_file("a.txt", b"hello", "text/plain"))
    page.locator("#status", has_text="a.txt has no answer.").wait_for()
    assert page.locator("#results .answer-name").all_inner_texts() == ["a.txt"]
    assert page.locator("#earlier-list .answer-name").all_inner_texts() == ["0.png"]
    assert page.get_by_role("heading", name="Earlier photos").is_visible()
    page.set_input_files("#files", build_file("1.png", create_photo(1)))
    page.locator("#results .bars").wait_for()
    assert page.locator(".answer-name").all_inner_texts() == ["1.png", "a.txt", "0.png"]


def test_sample_and_saliency_by_keyboard(open_page: "Opener") -> None:
    page = open_page()
    sample = page.get_by_role("button", name="Predict sample 1, labelled bée")
    sample.wait_for()
    sample.press("Enter")
    page.locator(".answer-remark", has_text="Labelled bée").wait_for()
    button = page.get_by_role("button", name="What does it depend on?")
    button.focus()
    page.keyboard.press("Space")
    page.get_by_alt_text("beside a map of the parts").wait_for()
    page.locator("summary").press("Enter")
    assert page.locator("#classes li").all_inner_texts() == list(CLASSES)


def test_sample_that_cannot_be_had_has_its_reason(open_page: "Opener") -> None:
    page = open_page()
    sample = page.get_by_role("button", name="Predict sample 1")
    sample.wait_for()
    answer = {"status": 404, "json": {"detail": "Not Found."}}
    page.route("**/samples/0", lambda route: route.fulfill(**answer))
    sample.click()
    page.locator(".answer", has_text="one.png").get_by_text("Not Found.").wait_for()
    page.route("**/samples", lambda route: route.fulfill(**answer))
    page.reload()
    page.locator("#status", has_text="Samples: Not Found.").wait_for()
    page.set_input_files("#files", build_file("x", create_photo()))
    page.locator(".answer .bars").wait_for()


def test_page_fits_a_phone_and_offers_its_camera(open_page: "Opener") -> None:
    page = open_page(width=360, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Take a photo").wait_for()
    assert page.locator("#shot").get_attribute("capture") == "environment"
    page.set_input_files("#shot", build_file("x", create_photo()))
    page.locator(".answer").wait_for()
    assert page.evaluate(_OVERFLOW) <= 0
    for path in ("/docs", "/"):
        page = open_page(path=path, width=360)
        page.locator("h1").wait_for()
        assert page.evaluate(_OVERFLOW) <= 0


def test_page_is_dark_when_the_system_is(open_page: "Opener") -> None:
    page = open_page(color_scheme="dark")
    read = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(read)
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(read) != dark
    assert page.locator("#theme-toggle").inner_text() == "Dark theme"
    page.reload()  # the choice stays, and holds for the page of the interface
    assert page.evaluate(read) != dark
    page.get_by_role("link", name="Interface for programs").click()
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(read) == dark


def test_page_asks_for_the_token_or_takes_it_from_its_address(open_page: "Opener") -> None:
    page = open_page("closed")
    assert page.locator("h1").inner_text() == "Image classifier"
    page.get_by_role("textbox", name="Token").fill("wrong token")
    page.get_by_role("button", name="Continue").click()
    page.locator("#token-message", has_text="This token is not accepted.").wait_for()
    page.get_by_role("textbox", name="Token").fill(_TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Predict sample 1").wait_for()
    page = open_page("closed", f"/#token={_TOKEN}")
    page.get_by_role("button", name="Predict sample 1").wait_for()
    assert "token" not in page.url
    page.set_input_files("#files", build_file("x", create_photo()))
    page.locator(".answer").wait_for()
