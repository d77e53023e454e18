"""Push to a local hub by the real client: what arrives is a model, and refusals are messages."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from finetune.bundle.bundle import load_model, save_bundle
from finetune.commands.push.push import push
from finetune.commands.push.pushed_folder import list_files
from finetune.commands.push.pushed_record import read_record
from finetune.errors import ConfigError, HubError
from finetune.inference.predictor import Predictor
from tests.support.helpers import RecordingReporter
from tests.support.hub_repositories import (
    TOKEN,
    Repository,
    WritableHub,
    read_page_head,
    serve_writable_hub,
)

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

NAME = "me/insects"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WritableHub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with serve_writable_hub(monkeypatch) as running:
        yield running


def write_files(repository: Repository, folder: Path) -> Path:
    """Write the files of a repository as a download would."""
    for name, content in repository.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def predict(model: Path, images: Path) -> torch.Tensor:
    return Predictor(load_model(model), device="cpu").predict_proba(sorted(images.rglob("*.png")))


def test_pushed_model_predicts_the_same_and_its_page_has_a_valid_head(
    trained: FitResult, insects: Path, hub: WritableHub, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    result = push(trained.run_dir, NAME, reporter=reporter)
    repository = hub.repositories[NAME]
    assert not repository.private
    assert result.is_new
    assert result.url == f"{hub.url}/{NAME}"
    assert set(repository.files) == set(result.files)
    assert {"README.md", "config.json", "finetune.json", "model.safetensors"} <= set(result.files)
    assert all(len(repository.files[name]) == size for name, size in result.files.items())
    downloaded = write_files(repository, tmp_path / "downloaded")
    torch.testing.assert_close(
        predict(downloaded, insects), predict(trained.run_dir, insects), rtol=0, atol=1e-5
    )
    readme = (downloaded / "README.md").read_text(encoding="utf-8")
    head = read_page_head(readme)
    assert head["model-index"][0]["name"] == NAME
    assert f'create_model("hf-hub:{NAME}"' in readme
    text = (downloaded / "finetune.json").read_text(encoding="utf-8") + readme
    assert str(trained.run_dir.parent) not in text
    assert TOKEN not in text + json.dumps(result.to_json()) + repr(reporter.__dict__)


def test_pushed_model_loads_from_the_hub_with_timm_alone(
    trained: FitResult, insects: Path, hub: WritableHub
) -> None:
    push(trained.run_dir, NAME)
    model = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    files = sorted(insects.rglob("*.png"))[:4]
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
        found = model(pixels).softmax(1)
    torch.testing.assert_close(found, predict(trained.run_dir, insects)[:4], rtol=0, atol=1e-4)


@pytest.mark.runs
def test_second_push_is_a_commit_that_removes_what_is_stale(
    trained: FitResult, hub: WritableHub
) -> None:
    push(trained.run_dir, NAME, private=True)
    repository = hub.repositories[NAME]
    assert repository.private
    record = json.loads(repository.files["pushed_files.json"])
    assert set(record["files"]) == set(repository.files)
    stale = {"members/0/model.safetensors": b"old", "onnx/labels.txt": b"a", "on[nx].txt": b"b"}
    own = {"notes.md": b"mine", "mine/config.json": b"{}", "mine.safetensors": b"w", "on.txt": b""}
    record["files"] += [*stale, "gone.onnx"]
    repository.branches["main"] |= {
        **stale,
        **own,
        "pushed_files.json": json.dumps(record).encode(),
    }
    hub.head_warnings.append("license_link is missing")
    reporter = RecordingReporter()
    planned = push(trained.run_dir, NAME, dry_run=True)
    assert set(planned.removed or ()) == set(stale)
    assert stale.keys() <= repository.files.keys()
    result = push(trained.run_dir, NAME, private=True, reporter=reporter)
    assert not result.is_new
    assert set(result.removed or ()) == set(stale)
    assert result.to_json()["removed"] == list(result.removed or ())
    assert any("license_link is missing" in text for text in reporter.warnings)
    assert any("mine/config.json, mine.safetensors" in text for text in reporter.warnings)
    assert not stale.keys() & repository.files.keys()
    assert own.items() <= repository.files.items()
    assert set(json.loads(repository.files["pushed_files.json"])["files"]) == set(result.files)
    assert len(repository.commits) == 2


@pytest.mark.runs
def test_push_to_a_branch_removes_what_its_own_record_has(
    trained: FitResult, hub: WritableHub
) -> None:
    push(trained.run_dir, NAME, revision="trial")
    branch = hub.repositories[NAME].branches["trial"]
    files = [*json.loads(branch["pushed_files.json"])["files"], "onnx/model.onnx"]
    branch |= {"onnx/model.onnx": b"", "pushed_files.json": json.dumps({"files": files}).encode()}
    result = push(trained.run_dir, NAME, revision="trial")
    assert result.removed == ("onnx/model.onnx",)
    assert "onnx/model.onnx" not in branch


def test_push_with_damaged_record_removes_nothing(
    trained: FitResult, hub: WritableHub, tmp_path: Path
) -> None:
    for record in (b"[]", b'{"files": 3}', b"\xff", b"[" * 99999):
        (tmp_path / "record.json").write_bytes(record)
        assert read_record(tmp_path / "record.json") == ()
    files = {"pushed_files.json": b"{", "onnx/model.onnx": b"old"}
    hub.repositories[NAME] = Repository(False, {"main": files})
    reporter = RecordingReporter()
    result = push(trained.run_dir, NAME, dry_run=True, reporter=reporter)
    assert result.removed == ()
    assert any("they stay: onnx/model.onnx" in text for text in reporter.warnings)


def test_push_to_a_branch_leaves_main_as_it_is(trained: FitResult, hub: WritableHub) -> None:
    result = push(trained.run_dir, "lab/insects", revision="trial/2", license="MIT")
    repository = hub.repositories["lab/insects"]
    assert repository.files == {}
    assert set(repository.branches["trial/2"]) == set(result.files)
    assert result.url is not None
    assert result.url.endswith("/tree/trial/2")
    readme = repository.branches["trial/2"]["README.md"].decode()
    assert read_page_head(readme)["license"] == "mit"
    assert "The model has the licence MIT. The network was trained from random" in readme


def test_dry_run_needs_neither_token_nor_network(
    trained: FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    reporter = RecordingReporter()
    result = push(trained.run_dir, NAME, dry_run=True, reporter=reporter)
    assert (result.url, result.commit, result.is_new) == (None, None, None)
    assert "model.safetensors" in result.files
    assert "pipeline_tag: image-classification" in result.head
    assert result.removed is None
    assert any("HF_HUB_OFFLINE is set" in text for text in reporter.notes)


def make_read_token(hub: WritableHub, patch: pytest.MonkeyPatch) -> None:
    hub.user["auth"]["accessToken"]["role"] = "read"


def store(files: dict[str, bytes], *, private: bool = False) -> Any:
    def put(hub: WritableHub, patch: pytest.MonkeyPatch) -> None:
        hub.repositories[NAME] = Repository(private, {"main": files})

    return put


def close_port(hub: WritableHub, patch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("name", "arguments", "change", "message"),
    [
        (
            NAME,
            {},
            lambda hub, patch: patch.delenv("HF_TOKEN"),
            "no token .*hf auth login.*HF_TOKEN",
        ),
        (NAME, {}, lambda hub, patch: patch.setenv("HF_TOKEN", "hf_other"), "not accept the token"),
        (NAME, {}, make_read_token, "token of 'me' may only read"),
        (NAME, {}, close_port, "127.0.0.1:\\d+ is not reachable"),
        (NAME, {}, lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "OFFLINE"),
        ("you/insects", {}, None, "'me'.* is not 'you' .*repository of me, Lab.*as in me/insects"),
        ("readers/insects", {}, None, "may only read in the organisation 'readers'"),
        (NAME, {}, store({"pytorch_model.bin": b""}), "did not push .pytorch_model.bin"),
        (NAME, {"private": True}, store({}), "exists and is public"),
    ],
)
def test_push_without_access_fails_before_the_model_is_exported(
    hub: WritableHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    arguments: dict[str, Any],
    change: Any,
    message: str,
) -> None:
    if change is not None:
        change(hub, monkeypatch)
    with pytest.raises(HubError, match=message) as caught:
        push(tmp_path / "there is no model", name, **arguments)
    assert TOKEN not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]


@pytest.mark.parametrize(
    "name",
    [
        "insects", "a/b/c", "a/../b", "me/x--y", "me/ä", "me/x.git", "https://hub/me/x", "me/", "",
        "me/" + "x" * 99, "-me/x",
    ],
)  # fmt: skip
def test_push_checks_the_name_of_the_repository_first(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no repository of the hub: .*Give user/name"):
        push(tmp_path / "nothing", name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "openvino"}, "--format openvino cannot be pushed.*safetensors or ONNX"),
        ({"format": "torch"}, "--format torch cannot be pushed"),
        ({"format": ["timm", "huggingface"]}, "files of the same name"),
        ({"format": ["timm", "timm"]}, "given twice"),
        ({"revision": "a..b"}, "cannot be a branch"),
        ({"license": "my licence"}, "no name of a licence"),
    ],
)
def test_push_checks_formats_and_branch_first(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        push(tmp_path / "nothing", NAME, **arguments)


@pytest.mark.parametrize(
    ("status", "message"), [(403, "may not write to me/insects .*made to fail"), (507, "507")]
)
def test_refused_upload_is_one_message(
    trained: FitResult, hub: WritableHub, status: int, message: str
) -> None:
    hub.failure = status
    with pytest.raises(HubError, match=message) as caught:
        push(trained.run_dir, NAME)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_may_be_pickles_or_links_are_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.onnx.data").write_bytes(b"")  # the weights of a model of more than 2 GB
    assert list_files(tmp_path) == {"model.onnx.data": 0, "model.safetensors": 0}
    (tmp_path / "train.data").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"train\.data is not pushed"):
        list_files(tmp_path)
    (tmp_path / "train.data").unlink()
    (tmp_path / "secret.json").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=r"secret\.json is a link"):
        list_files(tmp_path)
    (tmp_path / "secret.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is not pushed"):
        list_files(tmp_path)


def test_push_warns_of_weights_that_allow_no_commercial_use(
    trained: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bundle = load_model(trained.run_dir)
    facts = {**bundle.card.facts, "weights": "hub (convnextv2_atto.fcmae)"}
    save_bundle(bundle.network, replace(bundle.card, facts=facts), tmp_path / "bundle")
    reporter = RecordingReporter()
    result = push(tmp_path / "bundle", NAME, dry_run=True, reporter=reporter)
    assert result.license == "cc-by-nc-4.0"
    assert "license: cc-by-nc-4.0" in result.head
    assert any("no commercial use" in text for text in reporter.warnings)
    shutil.rmtree(tmp_path / "bundle")


@pytest.mark.slow
def test_push_as_onnx_beside_transformers_files(
    trained: FitResult, insects: Path, hub: WritableHub, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    result = push(trained.run_dir, NAME, format=["onnx", "huggingface"])
    assert {"model.safetensors", "onnx/model.onnx", "onnx/parity.json"} <= set(result.files)
    assert "onnx/README.md" not in result.files
    repository = hub.repositories[NAME]
    readme = repository.files["README.md"].decode()
    assert read_page_head(readme)["library_name"] == "transformers"
    assert f'pipeline("image-classification", model="{NAME}"' in readme
    assert "The folder `onnx/` has the same model" in readme
    folder = write_files(repository, tmp_path / "downloaded")
    expected = predict(trained.run_dir, insects)
    for model in (folder, folder / "onnx"):
        torch.testing.assert_close(predict(model, insects), expected, rtol=0, atol=1e-3)


@pytest.mark.runs
def test_pushed_page_claims_no_comparison_that_was_not_made(
    trained: FitResult, tmp_path: Path, hub: WritableHub
) -> None:
    pytest.importorskip("onnxruntime")
    bundle = load_model(trained.run_dir)
    save_bundle(bundle.network, replace(bundle.card, facts={}), tmp_path / "bundle")
    reporter = RecordingReporter()
    push(tmp_path / "bundle", NAME, format=["timm", "onnx"], reporter=reporter)
    assert sum("parity was not checked" in text for text in reporter.warnings) == 1
    files = hub.repositories[NAME].files
    assert "onnx/model.onnx" in files
    assert "onnx/parity.json" not in files
    assert "has the same model as a file of onnx.\n" in files["README.md"].decode()
    assert "parity" not in files["README.md"].decode()


@pytest.mark.slow
def test_model_pushed_as_onnx_alone_is_loaded_by_its_name(
    trained: FitResult, insects: Path, hub: WritableHub
) -> None:
    pytest.importorskip("onnxruntime")
    push(trained.run_dir, NAME, format="onnx")
    expected = predict(trained.run_dir, insects)
    found = predict(Path(f"hf-hub:{NAME}"), insects)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
