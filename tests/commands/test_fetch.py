"""What ``fetch`` brings is what ``fit`` finds without a network, or nothing of it is left."""

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
from tests.support.helpers import Recorder, everything, tiny_disk
from tests.support.hub_server import COMMIT, HubServer, hub_server
from tests.support.networks import randomise, snapshot
from tests.support.runs import finetune, weights, write_photos

NAME = "test_resnet.r160_in1k"
REPOSITORY = f"timm/{NAME}"
HUB_PATH = f"/{REPOSITORY}/resolve/main/model.safetensors"
CACHED = f"hub/models--timm--{NAME}/snapshots/{COMMIT}/model.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Return weights that no seed gives."""
    network = timm.create_model("test_resnet")
    randomise(network)
    return snapshot(network)


@pytest.fixture(scope="module")
def content(state: dict[str, Tensor]) -> bytes:
    return save(state)


@pytest.fixture
def home(tmp_path: Path, content: bytes) -> Path:
    """Return an HF_HOME as a download leaves it, made by hand."""
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
    with hub_server({HUB_PATH: content}) as running:
        yield running


def use(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub's client, which read its environment long ago, ask this server."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        there = getattr(constants, name)
        monkeypatch.setattr(constants, name, there.replace("https://huggingface.co", server.url))


def blobs(home: Path) -> list[str]:
    """Return the files in a cache of the hub that hold content, whole or not."""
    return [name for name in everything(home / "hub") if "/blobs/" in name]


def test_weights_that_are_there_are_proved_and_described(offline: Path, content: bytes) -> None:
    told = Recorder()
    (found,) = fetch(["test_resnet"], reporter=told).weights
    assert (found.name, found.was_cached) == (NAME, True)
    assert found.url == f"https://huggingface.co/{REPOSITORY}"
    assert found.file == offline / CACHED
    assert found.num_bytes == len(content)
    size = f"{len(content) / 1e6:.1f} MB"
    assert told.notes == [
        f"{NAME}: {size}, there already, from https://huggingface.co/{REPOSITORY}\n  {found.file}"
    ]


def test_a_name_is_taken_with_its_tag_and_once(offline: Path) -> None:
    del offline
    names = [one.name for one in fetch(["test_resnet", NAME, "test_resnet"]).weights]
    assert names == [NAME, NAME]


def test_one_that_fails_does_not_keep_the_others_back(offline: Path) -> None:
    del offline
    told = Recorder()
    message = (
        r"^3 of 4 backbones could not be fetched:\n"
        r"  test_resnett: Unknown backbone 'test_resnett'\. Did you mean 'test_resnet'\?.*\n"
        r"  test_resnet\.r16: .*has no weights named 'r16'.*'test_resnet\.r160_in1k'\?\n"
        r"  test_vit: The weights of 'test_vit' are not in .*HF_HUB_OFFLINE keeps.*fetch test_vit"
    )
    with pytest.raises(ModelError, match=message):
        fetch(["test_resnett", "test_resnet.r16", "test_vit", "test_resnet"], reporter=told)
    assert [note.partition(":")[0] for note in told.notes] == [NAME]


def test_the_command_line_ends_with_the_code_of_the_backbone(
    offline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del offline
    monkeypatch.setenv("COLUMNS", "1000")
    assert run_command(["fetch", "test_resnet", "alexnt", "--json"]) == ModelError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert NAME in err
    assert "error: 1 of 2 backbones could not be fetched" in err
    assert "Did you mean 'alexnet'?" in err
    assert run_command(["fetch"]) == ConfigError.exit_code


def test_a_backbone_without_weights_is_said_to_have_none(offline: Path) -> None:
    del offline
    assert not timm.is_model_pretrained("darknet17")
    with pytest.raises(ModelError, match=r"timm has no weights for 'darknet17'.*--weights random"):
        fetch(["darknet17"])


def test_damaged_weights_are_fetched_again(
    offline: Path, content: bytes, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = offline / CACHED
    file.write_bytes(content[: len(content) // 2])
    use(server, monkeypatch)
    told = Recorder()
    (found,) = fetch(["test_resnet"], reporter=told).weights
    assert told.warnings == [f"{file} is damaged and is fetched again"]
    assert not found.was_cached
    assert file.read_bytes() == content


def googlenet_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm look for GoogLeNet's weights at another address."""
    from timm.models import _registry

    cfg = _registry._model_pretrained_cfgs["googlenet"]
    monkeypatch.setattr(cfg, "url", f"{address}/googlenet-1378be20.pth")


def test_torchvisions_weights_are_fetched_whole_or_not_at_all(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.save(snapshot(timm.create_model("googlenet")), buffer)
    content = buffer.getvalue()
    folder = offline.parent / "torch" / "hub" / "checkpoints"
    with hub_server({"/googlenet-1378be20.pth": content}) as server:
        googlenet_at(server.url, monkeypatch)
        server.cut_at = len(content) // 2
        with pytest.raises(ModelError, match=r"'googlenet' came damaged.*the connection broke off"):
            fetch(["googlenet"])
        assert everything(folder) == []
        server.cut_at = None
        (found,) = fetch(["googlenet"]).weights
    assert found.name == "googlenet.tv_in1k"
    assert found.file == folder / "googlenet-1378be20.pth"
    assert found.file.read_bytes() == content
    (again,) = fetch(["googlenet"]).weights  # there is no server any more
    assert (found.was_cached, again.was_cached) == (False, True)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the hub's client says so too
def test_a_full_disk_is_no_matter_of_the_network(
    tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, monkeypatch)
    with tiny_disk(tmp_path / "disk", size="1m") as disk:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk))
        with pytest.raises(StorageError, match=rf"Cannot write {disk}: no space.*HF_HOME"):
            fetch(["test_resnet"])


def said(stdout: str) -> list[Mapping[str, Any]]:
    """Return what ``fetch --json`` printed."""
    found: list[Mapping[str, Any]] = json.loads(stdout)["weights"]
    return found


@pytest.mark.slow
def test_fit_finds_without_a_network_what_was_fetched(
    tmp_path: Path, server: HubServer, state: dict[str, Tensor]
) -> None:
    """A download from a real server, then a training that could not download."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    fetched = finetune(
        tmp_path, "fetch", "test_resnet", "--json", extra={**home, "HF_ENDPOINT": server.url}
    )
    assert fetched.returncode == 0, fetched.stderr
    (found,) = said(fetched.stdout)
    assert found == {
        "name": NAME,
        "address": f"{server.url}/{REPOSITORY}",
        "file": str(tmp_path / "hf" / CACHED),
        "bytes": len(save(state)),
        "was_cached": False,
    }
    assert f"GET {HUB_PATH}" in server.requests
    asked = len(server.requests)

    photos = write_photos(tmp_path / "photos", num_train=4)
    words = ("fit", photos, "--backbone", "test_resnet", "--unfreeze", "linear_probe")
    small = ("--epochs", 1, "--image-size", 32, "--output", tmp_path / "run", "data.num_workers=0")
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    trained = finetune(tmp_path, *words, *small, extra=offline)
    assert trained.returncode == 0, trained.stderr
    assert len(server.requests) == asked
    ours = weights(tmp_path / "run", "best")
    (conv,) = [name for name in ours if name.endswith("conv1.0.weight") and "layer" not in name]
    assert torch.equal(ours[conv], state["conv1.0.weight"])


@pytest.mark.slow
def test_a_connection_that_breaks_off_leaves_nothing_half_written(
    tmp_path: Path, server: HubServer, content: bytes
) -> None:
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    server.cut_at = len(content) // 2
    ended = finetune(tmp_path, "fetch", "test_resnet", extra=home)
    assert ended.returncode == 4, ended.stderr
    message = " ".join(ended.stderr.split())
    assert f"'test_resnet' could not be fetched from {server.url}/{REPOSITORY}" in message
    assert "Traceback" not in message
    assert blobs(tmp_path / "hf") == []

    server.cut_at = None
    ended = finetune(tmp_path, "fetch", "test_resnet", extra=home)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "hf" / CACHED).read_bytes() == content
