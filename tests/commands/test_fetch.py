"""Tests of ``finetune.commands.fetch``."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor

from finetune.cli.main import run as run_command
from finetune.commands.fetch import fetch
from finetune.errors import ConfigError, ModelError, StorageError
from finetune.units import format_bytes
from tests.support.helpers import RecordingReporter, list_tree, mount_tiny_disk
from tests.support.hub_server import COMMIT, HubServer, serve_hub
from tests.support.networks import copy_state, randomise
from tests.support.runs import load_weights, run_finetune, write_photos

NAME = "test_resnet.r160_in1k"
REPOSITORY = f"timm/{NAME}"
HUB_PATH = f"/{REPOSITORY}/resolve/main/model.safetensors"
CACHED = f"hub/models--timm--{NAME}/snapshots/{COMMIT}/model.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Return weights that no initialization gives."""
    network = timm.create_model("test_resnet")
    randomise(network)
    return copy_state(network)


@pytest.fixture(scope="module")
def content(state: dict[str, Tensor]) -> bytes:
    return save(state)


@pytest.fixture
def home(tmp_path: Path, content: bytes) -> Path:
    """Return a folder with the layout of HF_HOME after a download."""
    file = tmp_path / "hf" / CACHED
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    refs = file.parents[2] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return tmp_path / "hf"


@pytest.fixture
def offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use ``home`` in this process, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(home.parent / "torch"))
    return home


@pytest.fixture
def server(content: bytes) -> Iterator[HubServer]:
    with serve_hub({HUB_PATH: content}) as running:
        yield running


def use_server(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect the hub client, which has already read its environment, to this server."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        there = getattr(constants, name)
        monkeypatch.setattr(constants, name, there.replace("https://huggingface.co", server.url))


def list_blobs(home: Path) -> list[str]:
    """Return the files with content in a hub cache, complete or not."""
    return [name for name in list_tree(home / "hub") if "/blobs/" in name]


def test_fetch_cached_weights_reports_name_url_file_and_size(offline: Path, content: bytes) -> None:
    recorder = RecordingReporter()
    (found,) = fetch(["test_resnet"], reporter=recorder).weights
    assert (found.name, found.was_cached) == (NAME, True)
    assert found.url == f"https://huggingface.co/{REPOSITORY}"
    assert found.file == offline / CACHED
    assert found.num_bytes == len(content)
    (note,) = recorder.notes
    for part in (NAME, format_bytes(len(content)), found.url, str(found.file)):
        assert part in note


def test_fetch_duplicate_names_are_fetched_once(offline: Path) -> None:
    del offline
    names = [one.name for one in fetch(["test_resnet", NAME, "test_resnet"]).weights]
    assert names == [NAME, NAME]


def test_fetch_failure_does_not_affect_other_backbones(offline: Path) -> None:
    del offline
    recorder = RecordingReporter()
    message = (
        r"^3 of 4 .*\n"
        r"  test_resnett: .*'test_resnett'.*'test_resnet'\?.*\n"
        r"  test_resnet\.r16: .*'r16'.*'test_resnet\.r160_in1k'\?\n"
        r"  test_vit: .*'test_vit'.*HF_HUB_OFFLINE.*fetch test_vit"
    )
    with pytest.raises(ModelError, match=message):
        fetch(["test_resnett", "test_resnet.r16", "test_vit", "test_resnet"], reporter=recorder)
    assert [note.partition(":")[0] for note in recorder.notes] == [NAME]


def test_fetch_command_unknown_backbone_exits_with_model_error(
    offline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del offline
    monkeypatch.setenv("COLUMNS", "1000")
    assert run_command(["fetch", "test_resnet", "alexnt", "--json"]) == ModelError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert NAME in err
    assert "error: 1 of 2 " in err
    assert "'alexnet'?" in err
    assert run_command(["fetch"]) == ConfigError.exit_code


def test_fetch_backbone_without_weights_raises_model_error(offline: Path) -> None:
    del offline
    assert not timm.is_model_pretrained("darknet17")
    with pytest.raises(ModelError, match=r"'darknet17'.*--weights random"):
        fetch(["darknet17"])


def test_fetch_damaged_weights_downloads_again(
    offline: Path, content: bytes, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = offline / CACHED
    file.write_bytes(content[: len(content) // 2])
    use_server(server, monkeypatch)
    recorder = RecordingReporter()
    (found,) = fetch(["test_resnet"], reporter=recorder).weights
    assert len(recorder.warnings) == 1
    assert str(file) in recorder.warnings[0]
    assert not found.was_cached
    assert file.read_bytes() == content


def set_googlenet_url(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the URL from which timm downloads the weights of GoogLeNet."""
    from timm.models import _registry

    cfg = _registry._model_pretrained_cfgs["googlenet"]
    monkeypatch.setattr(cfg, "url", f"{base_url}/googlenet-1378be20.pth")


@pytest.mark.runs
def test_fetch_torchvision_weights_interrupted_leaves_no_file(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.save(copy_state(timm.create_model("googlenet")), buffer)
    content = buffer.getvalue()
    folder = offline.parent / "torch" / "hub" / "checkpoints"
    with serve_hub({"/googlenet-1378be20.pth": content}) as server:
        set_googlenet_url(server.url, monkeypatch)
        server.cut_at = len(content) // 2
        with pytest.raises(ModelError, match=r"'googlenet'"):
            fetch(["googlenet"])
        assert list_tree(folder) == []
        server.cut_at = None
        (found,) = fetch(["googlenet"]).weights
    assert found.name == "googlenet.tv_in1k"
    assert found.file == folder / "googlenet-1378be20.pth"
    assert found.file.read_bytes() == content
    (again,) = fetch(["googlenet"]).weights  # there is no server any more
    assert (found.was_cached, again.was_cached) == (False, True)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the hub client warns, too
def test_fetch_full_disk_raises_storage_error(
    tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(server, monkeypatch)
    with mount_tiny_disk(tmp_path / "disk", size="1m") as disk:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk))
        with pytest.raises(StorageError, match=rf"{disk}.*no space.*HF_HOME"):
            fetch(["test_resnet"])


def parse_weights(stdout: str) -> list[Mapping[str, Any]]:
    """Return the weights that ``fetch --json`` printed."""
    entries: list[Mapping[str, Any]] = json.loads(stdout)["weights"]
    return entries


@pytest.mark.slow
def test_fetch_then_fit_offline_uses_cached_weights(
    tmp_path: Path, server: HubServer, state: dict[str, Tensor]
) -> None:
    """Download from a real server, then train without network access."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    fetched = run_finetune(
        tmp_path, "fetch", "test_resnet", "--json", extra={**home, "HF_ENDPOINT": server.url}
    )
    assert fetched.returncode == 0, fetched.stderr
    (found,) = parse_weights(fetched.stdout)
    assert found == {
        "name": NAME,
        "url": f"{server.url}/{REPOSITORY}",
        "file": str(tmp_path / "hf" / CACHED),
        "num_bytes": len(save(state)),
        "was_cached": False,
    }
    assert f"GET {HUB_PATH}" in server.requests
    num_requests = len(server.requests)

    photos = write_photos(tmp_path / "photos", num_train=4)
    args = ("fit", photos, "--backbone", "test_resnet", "--unfreeze", "linear_probe")
    small = ("--epochs", 1, "--image-size", 32, "--output", tmp_path / "run", "data.num_workers=0")
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    trained = run_finetune(tmp_path, *args, *small, extra=offline)
    assert trained.returncode == 0, trained.stderr
    assert len(server.requests) == num_requests
    ours = load_weights(tmp_path / "run", "best")
    (conv,) = [name for name in ours if name.endswith("conv1.0.weight") and "layer" not in name]
    assert torch.equal(ours[conv], state["conv1.0.weight"])


@pytest.mark.slow
def test_fetch_interrupted_download_leaves_no_file(
    tmp_path: Path, server: HubServer, content: bytes
) -> None:
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    server.cut_at = len(content) // 2
    ended = run_finetune(tmp_path, "fetch", "test_resnet", extra=home)
    assert ended.returncode == 4, ended.stderr
    message = " ".join(ended.stderr.split())
    assert "'test_resnet'" in message
    assert f"{server.url}/{REPOSITORY}" in message
    assert "Traceback" not in message
    assert list_blobs(tmp_path / "hf") == []

    server.cut_at = None
    ended = run_finetune(tmp_path, "fetch", "test_resnet", extra=home)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "hf" / CACHED).read_bytes() == content
