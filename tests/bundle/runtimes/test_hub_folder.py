"""Tests of models in folders of timm and transformers, on disk and on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from torch import Tensor, nn

import finetune
from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.model_page.initial_weights import describe_weights
from finetune.bundle.model_page.weights_origin import WeightsOrigin, find_weights_origin
from finetune.bundle.runtimes.hub_download import download_model
from finetune.errors import ConfigError, FinetuneError, ModelError, RunFolderError
from finetune.inference.predictor import Predictor
from tests.support.hub_server import COMMIT, HubServer, serve_hub
from tests.support.networks import randomise
from tests.support.pictures import create_scene

NAMES = ["ant", "bée", "wasp, red"]


def write_timm_folder(folder: Path, *, names: list[str] | None, num_classes: int = 3) -> nn.Module:
    """Write a folder as timm pushes it to the hub, and return its network."""
    network = timm.create_model("test_resnet", num_classes=num_classes).eval()
    randomise(network)
    config = {} if names is None else {"label_names": names}
    save_for_hf(network, str(folder), model_config=config, safe_serialization=True)
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of timm with class names."""
    write_timm_folder(tmp_path / "hub", names=NAMES)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return image files of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    sizes = [(200, 150), (90, 170), (64, 64)]
    files = [root / f"{number}.png" for number in range(len(sizes))]
    for seed, (file, (width, height)) in enumerate(zip(files, sizes, strict=True)):
        create_scene(seed, width=width, height=height).save(file)
    return files


def predict(path: Path, files: list[Path]) -> Tensor:
    return Predictor(load_model(path), device="cpu").predict_proba(files)


def predict_with_timm(folder: Path, files: list[Path]) -> Tensor:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config)
    images = torch.stack([torch.as_tensor(transform(Image.open(file))) for file in files])
    with torch.inference_mode():
        logits: Tensor = network(images)
    return logits.softmax(1)


def test_load_model_of_timm_folder_predicts_as_timm(folder: Path, files: list[Path]) -> None:
    card = load_model(folder).card
    assert card.classes == tuple(NAMES)
    assert card.backbone == "test_resnet"
    expected = predict_with_timm(folder, files)
    assert expected.std(0).max() > 1e-4, "the images must differ"
    assert float((predict(folder, files) - expected).abs().max()) < 1e-5


def test_timm_folder_states_no_class_prior(folder: Path, files: list[Path]) -> None:
    prior = finetune.predict(folder, files, device="cpu").to_json()["prior"]
    assert prior["target_prior"] == "unknown, not adjusted (the model states no class prior)"
    with pytest.raises(ConfigError, match="models of other programs state none"):
        finetune.predict(folder, files, device="cpu", prior="uniform")


def test_load_model_of_timm_folder_uses_its_preprocessing(folder: Path, files: list[Path]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    before = predict(folder, files)
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.5, "crop_mode": "squash"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = predict_with_timm(folder, files)
    assert float((expected - before).abs().max()) > 1e-3
    assert float((predict(folder, files) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("num_classes", "first", "last"),
    [(4, "0", "3"), (1000, "tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")],
)
def test_load_model_of_timm_folder_without_names(
    tmp_path: Path, num_classes: int, first: str, last: str
) -> None:
    write_timm_folder(tmp_path / "hub", names=None, num_classes=num_classes)
    classes = load_model(tmp_path / "hub").card.classes
    assert (classes[0], classes[-1]) == (first, last)
    assert len(set(classes)) == num_classes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "no_such_net"}, ModelError, "unknown to timm"),
        ({"num_classes": 5}, RunFolderError, "3 class names for 5 classes"),
        ({"architecture": "test_vit"}, RunFolderError, "weights do not fit"),
        ({"pretrained_cfg": {"mean": "x"}}, RunFolderError, "cannot be loaded"),
    ],
)
def test_load_model_of_damaged_folder_says_what_differs(
    folder: Path, change: dict[str, object], error: type[FinetuneError], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, **change})
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        load_model(folder)


def test_load_model_of_other_transformers_model_is_refused_by_name(folder: Path) -> None:
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"transformers, ViTForImageClassification.*timm"):
        load_model(folder)


@pytest.mark.parametrize(
    ("head", "entry", "licence", "base_model"),
    [
        (None, "cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("license: other\nlicense_name: my-terms\nbase_model: a/b", None, "my-terms", "a/b"),
        ("license: cc-by-nc-sa-4.0", "apache-2.0", "cc-by-nc-sa-4.0", None),
        ("license: mit", "cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("license: [mit\n: {", "unknown", None, None),
    ],
)
def test_licence_of_hub_folder_is_that_of_its_exports(
    folder: Path, tmp_path: Path, head: str | None, entry: str | None, licence: str | None,
    base_model: str | None,
) -> None:  # fmt: skip
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"].pop("license", None)
    config["pretrained_cfg"] |= {} if entry is None else {"license": entry}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if head is not None:
        (folder / "README.md").write_text(f"---\n{head}\n---\n# Net\n", encoding="utf-8")
    model = load_model(folder)
    assert find_weights_origin(model.card) == WeightsOrigin("hub", base_model, licence)
    for path in (folder, folder / "model.safetensors"):  # as weights that a run begins with
        origin = describe_weights(str(path), "test_resnet")
        assert origin == WeightsOrigin("file", base_model, licence)
    save_bundle(model.network, model.card, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert saved["pretrained_cfg"].get("license") == licence


def test_load_model_of_truncated_weights_raises_run_folder_error(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match="Download it again"):
        load_model(folder)


def build_pages(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what the hub serves for a repository ``ann/insects`` with files."""
    api = "/api/models/ann/insects"
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
        for name, content in contents.items()
    ]
    info = {"id": "ann/insects", "sha": COMMIT, "siblings": [{"rfilename": n} for n in contents]}
    return {
        f"{api}/revision/main": json.dumps(info).encode(),
        f"{api}/tree/{COMMIT}?recursive=true&expand=false": json.dumps(tree).encode(),
        **{f"/ann/insects/resolve/{COMMIT}/{name}": body for name, body in contents.items()},
    }


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve the folder, with a pickle and code beside it, as the repository ``ann/insects``."""
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    contents |= {"pytorch_model.bin": b"\x80\x04", "modeling.py": b"raise SystemExit"}
    pages = build_pages(contents)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve_hub(pages) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def test_predict_with_model_of_hub_downloads_safetensors_alone(
    hub: HubServer, folder: Path, files: list[Path]
) -> None:
    result = finetune.predict("hf-hub:ann/insects", files)
    expected = predict(folder, files)
    assert [prediction.probabilities[0] for prediction in result.predictions] == pytest.approx(
        expected.max(1).values.tolist(), abs=1e-6
    )
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"config.json", "model.safetensors"}
    before = len(hub.requests)
    model = load_model(Path("hf-hub:ann/insects"))  # from the cache
    assert model.card.facts["base_model"] == "ann/insects"
    assert not any("/resolve/" in request for request in hub.requests[before:])


def test_load_model_of_hub_without_such_model_names_it(hub: HubServer) -> None:
    del hub
    with pytest.raises(ModelError, match=r"hf-hub:ann/other cannot be downloaded from http://127"):
        load_model(Path("hf-hub:ann/other"))


def test_load_model_of_hub_with_pickle_alone_says_what_it_has(hub: HubServer) -> None:
    hub.files = build_pages({"config.json": b"{}", "model.pth": b"\x80\x04"})
    with pytest.raises(
        ModelError, match=r"neither .* nor model\.onnx, but config\.json, model\.pth"
    ):
        load_model(Path("hf-hub:ann/insects"))
    assert not any("model.pth" in request for request in hub.requests)


def test_onnx_file_of_hub_is_downloaded_where_there_are_no_safetensors(hub: HubServer) -> None:
    files = {"model.onnx": b"graph", "model.onnx.data": b"weights", "parity.json": b"{}"}
    hub.files = build_pages({**files, "model.bin": b"\x80\x04", "old/model.onnx": b"other"})
    folder = download_model("hf-hub:ann/insects")
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == files
