"""Tests of POST /predict: equal to ``finetune predict``, and what it rejects."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.commands.predict.predict import predict
from finetune.commands.serve.model_facts import build_model_facts
from finetune.commands.serve.predictor_model import PredictorModel
from finetune.inference.predictor import Predictor
from finetune.types import Tta
from tests.server.conftest import CLASSES, LIMITS, Starter, create_photo, encode
from tests.support.image_kinds import KINDS


def _write_odd_photos(folder: Path) -> list[Path]:
    """Write photos that other code than that of ``predict`` would read differently."""
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (60, 44, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels).resize((88, 120), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif, quality=90)
    photo.convert("CMYK").save(folder / "print.jpg", quality=90)
    photo.convert("L").save(folder / "grey.webp", lossless=True)
    Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + 7).save(folder / "deep.png")
    for name, kind in KINDS.items():
        if kind.pixels is not None:
            (folder / name).write_bytes(kind.data)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", ["single", "ensemble", "multi_label", "flipped"])
def test_probabilities_are_those_of_predict(
    start: Starter, bundle: ModelBundle, tmp_path: Path, kind: str
) -> None:
    model, tta = bundle, Tta.HFLIP if kind == "flipped" else Tta.NONE
    if kind == "multi_label":
        model = replace(bundle, card=replace(bundle.card, thresholds=(0.4, 0.5, 0.6)))
    if kind == "ensemble":
        spec = replace(bundle.card.spec, input_size=(3, 48, 48))
        other = replace(bundle, card=replace(bundle.card, spec=spec, temperature=5.0))
        model = combine_models([bundle, other], weights=[1, 3])
    if kind == "flipped":
        facts = {**bundle.card.facts, "flipped": True}
        model = replace(bundle, card=replace(bundle.card, facts=facts))
    files = _write_odd_photos(tmp_path)
    predictor = Predictor(model, device="cpu", tta=tta)
    expected = predictor.predict_proba(files).tolist()
    served = PredictorModel(
        predictor,
        facts=build_model_facts(model.card, runtime="torch", device="cpu"),
    )
    client = start(served)
    spread = np.ptp(np.array(expected), axis=0)
    assert spread.max() > 0.05, "equal predictions would prove nothing"
    for file, row in zip(files, expected, strict=True):
        answer = client.post("/predict?all=true", content=file.read_bytes())
        assert answer.status_code == 200, (file.name, answer.text)
        (found,) = answer.json()["predictions"]
        assert list(found["probabilities"]) == list(CLASSES)
        assert list(found["probabilities"].values()) == pytest.approx(row, abs=1e-6)
        if kind == "multi_label":
            thresholds = (0.4, 0.5, 0.6)
            names = {n for n, p, t in zip(CLASSES, row, thresholds, strict=True) if p >= t}
            assert {entry["label"] for entry in found["labels"]} == names


def test_answer_has_the_words_of_predict_json(
    start: Starter, model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(create_photo(2))
    expected = predict(model_folder, file, top_k=2, device="cpu").to_json()["predictions"][0]
    answer = start().post("/predict?top_k=2", files={"file": ("photo.png", file.read_bytes())})
    (found,) = answer.json()["predictions"]
    assert found["name"] == "photo.png"
    assert found.keys() - {"name"} == expected.keys() - {"path", "probabilities"}
    assert found["label"] == expected["label"]
    assert [entry["label"] for entry in found["top"]] == [e["label"] for e in expected["top"]]
    assert found["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_form_of_several_files_keeps_their_order_and_reports_bad_ones(start: Starter) -> None:
    client = start()
    photos = [create_photo(seed) for seed in (0, 1, 2)]
    files = [("file", (f"{n}.png", photo)) for n, photo in enumerate(photos)]
    files.insert(1, ("file", ("../../etc/passwd", photos[0][:60])))
    found = client.post("/predict?all=true", files=files).json()["predictions"]
    assert [entry["name"] for entry in found] == ["0.png", "../../etc/passwd", "1.png", "2.png"]
    assert found[1]["error"] == {"reason": "damaged_image", "detail": "Truncated PNG."}
    for entry, photo in zip([found[0], *found[2:]], photos, strict=True):
        (alone,) = client.post("/predict?all=true", content=photo).json()["predictions"]
        assert entry["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)


def _build_bomb(side: int) -> bytes:
    """Return a PNG of a few kB that would take gigabytes when decoded."""

    def build_chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [build_chunk(b"IHDR", header), build_chunk(b"IDAT", body), build_chunk(b"IEND", b"")]
    )


_PHOTO = create_photo()


@pytest.mark.parametrize(
    ("content", "status", "reason", "detail"),
    [
        pytest.param(
            _build_bomb(12_000),
            413,
            "too_many_pixels",
            "Too large: 12000x12000 is 144 megapixels; at most 1 are accepted.",
            id="bomb",
        ),
        pytest.param(
            _build_bomb(60_000),
            413,
            "too_many_pixels",
            "Too large: 60000x60000 is 3600 megapixels; at most 1 are accepted.",
            id="big bomb",
        ),
        pytest.param(
            bytes(200_001), 413, "too_many_bytes", "The body has 200 kB; a request", id="bytes"
        ),
        pytest.param(_PHOTO[: len(_PHOTO) // 2], 422, "damaged_image", "Truncated PNG.", id="cut"),
        pytest.param(b"Dear diary,\n", 415, "no_image", "Not an image: text.", id="text"),
        pytest.param(b'{"path": "/etc/passwd"}', 415, "no_image", "Not an image: text.", id="json"),
        pytest.param(b"\x80\x04\x95\x05\0\0\0", 415, "no_image", "Not an image", id="pickle"),
        pytest.param(b"", 422, "no_file", "The body is empty. Send an image file", id="empty"),
        pytest.param(KINDS["page.png"].data, 415, "no_image", "Web page (HTML)", id="html"),
        pytest.param(KINDS["postscript.jpg"].data, 415, "no_image", "PostScript", id="postscript"),
        pytest.param(KINDS["bands.tif"].data, 415, "unsupported_format", "TIFF of 13", id="bands"),
    ],
)
def test_unusable_body_is_rejected_by_both_routes_with_its_reason(
    start: Starter, content: bytes, status: int, reason: str, detail: str
) -> None:
    client = start()
    answer = client.post("/predict", content=content)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert detail in answer.json()["detail"]
    saliency = client.post("/saliency", content=content)
    assert (saliency.status_code, saliency.json()) == (answer.status_code, answer.json())
    assert f'finetune_rejected_total{{reason="{reason}"}} 2.0' in client.get("/metrics").text


def test_pixels_are_limited_just_above_the_limit(start: Starter) -> None:
    limits = replace(LIMITS, max_pixels=1_000)
    client = start(limits=limits)
    inside = encode(Image.new("RGB", (25, 40)))
    above = encode(Image.new("RGB", (7, 143)))
    assert client.post("/predict", content=inside).status_code == 200
    assert client.post("/predict", content=above).json()["reason"] == "too_many_pixels"


@pytest.mark.parametrize(
    ("request_options", "status", "reason"),
    [
        pytest.param(
            {"files": [("file", (f"{n}.png", b"x")) for n in range(5)]},
            413,
            "too_many_files",
            id="files",
        ),
        pytest.param(
            {"files": {"file": ("a.png", bytes(210_000))}}, 413, "too_many_bytes", id="form"
        ),
        pytest.param(
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            400,
            "invalid_form",
            id="no boundary",
        ),
        pytest.param(
            {
                "content": b"nonsense",
                "headers": {"Content-Type": "multipart/form-data; boundary=b"},
            },
            400,
            "invalid_form",
            id="damaged form",
        ),
        pytest.param(
            {"data": {"file": "a"}, "files": {"": ("", b"")}}, 422, "no_file", id="fields"
        ),
    ],
)
def test_unusable_form_is_rejected_with_its_reason(
    start: Starter, request_options: dict[str, Any], status: int, reason: str
) -> None:
    answer = start().post("/predict", **request_options)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text


@pytest.mark.parametrize(
    ("charset", "name", "status", "shown"),
    [
        ("utf-8", "é.png", 200, "é.png"),
        ("unicode_escape", r"a\ud800.png", 200, "a?.png"),
        ("raw_unicode_escape", r"\udfff" * 300, 200, "?" * 255),
        ("unknown", "é.png", 200, "Ã©.png"),
        ("undefined", "a.png", 400, ""),
    ],
)
def test_charset_of_a_form_never_breaks_the_answer(
    start: Starter, charset: str, name: str, status: int, shown: str
) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = b"--b\r\n" + head.encode() + _PHOTO + b"\r\n--b--\r\n"
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = start().post("/predict", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["predictions"][0]["name"] == shown
    else:
        assert answer.json()["reason"] == "invalid_form"


def test_invalid_parameter_and_unknown_path_are_explained(start: Starter) -> None:
    client = start()
    answer = client.post("/predict?top_k=0", content=_PHOTO)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid_parameter")
    assert answer.json()["detail"].startswith("top_k: ")
    assert client.get("/nothing").json()["reason"] == "not_found"
    assert client.get("/predict").json()["reason"] == "wrong_method"


def test_url_and_path_in_a_request_are_not_opened(start: Starter, tmp_path: Path) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(_PHOTO)
    client = start()
    for body in (str(file), f"file://{file}", f"http://127.0.0.1/{file.name}"):
        assert client.post("/predict", content=body.encode()).status_code == 415
        answer = client.post("/predict", files={"file": (str(file), b"")})
        assert (answer.status_code, answer.json()["reason"]) == (415, "no_image")


def test_unreadable_images_leave_no_open_file(start: Starter) -> None:
    client = start()
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("/proc is not mounted")
    client.post("/predict", content=_PHOTO[:99])
    before = len(list(folder.iterdir()))
    for _ in range(5):
        client.post("/predict", content=_PHOTO[:99])
        client.post("/predict", content=_PHOTO)
    assert len(list(folder.iterdir())) <= before
