"""Hub weights: addresses, caches, and immediate errors where they cannot be downloaded."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from finetune.errors import ModelError
from finetune.models.backbone import create_network
from finetune.models.pretrained.hub import check_cached_or_reachable, find_hub_weights
from tests.support.networks import copy_state

SNAPSHOT = "models--timm--test_resnet.r160_in1k/snapshots/1a2b"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set empty caches, and no proxy."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    return tmp_path


@pytest.fixture
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name resolution fail."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def write_cached_resnet(caches: Path) -> Path:
    """Write weights where the hub's client would have stored them; return their file."""
    file = caches / "hub" / SNAPSHOT / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(copy_state(timm.create_model("test_resnet")), file)
    refs = caches / "hub" / "models--timm--test_resnet.r160_in1k" / "refs"
    refs.mkdir()
    (refs / "main").write_text("1a2b")
    return file


@pytest.mark.parametrize(
    ("backbone", "name", "address"),
    [
        ("resnet50", "resnet50.a1_in1k", "https://huggingface.co/timm/resnet50.a1_in1k"),
        ("resnet50.tv_in1k", "resnet50.tv_in1k", "https://huggingface.co/timm/resnet50.tv_in1k"),
        ("hf-hub:me/mine@v2", "hf-hub:me/mine@v2", "https://huggingface.co/me/mine@v2"),
        (
            "alexnet",
            "alexnet.tv_in1k",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ),
    ],
)
def test_find_hub_weights_returns_name_and_address(backbone: str, name: str, address: str) -> None:
    weights = find_hub_weights(backbone)
    assert weights is not None
    assert (weights.name, weights.address) == (name, address)
    assert weights.find_cached() is None


def test_find_hub_weights_without_weights_returns_none() -> None:
    assert find_hub_weights("darknet17") is None
    with pytest.raises(ModelError, match=r"darknet17.*--weights random"):
        create_network("darknet17", num_classes=3)


def test_find_cached_depends_on_the_revision(caches: Path) -> None:
    file = write_cached_resnet(caches)
    repository = "hf-hub:timm/test_resnet.r160_in1k"
    for name, expected in (
        (repository, file),
        (f"{repository}@1a2b", file),
        (f"{repository}@x", None),
    ):
        weights = find_hub_weights(name)
        assert weights is not None
        assert weights.find_cached() == expected, name


@pytest.mark.usefixtures("no_dns")
@pytest.mark.parametrize(
    ("backbone", "host", "cache"),
    [
        ("googlenet", "download.pytorch.org", "torch/hub/checkpoints"),
        ("resnet18", "huggingface.co", "hub"),
    ],
)
def test_create_network_unreachable_host_raises_model_error(
    backbone: str, host: str, cache: str, caches: Path
) -> None:
    message = (
        rf"'{backbone}' .*{re.escape(str(caches / cache))}, .*{re.escape(host)} .*"
        rf"finetune fetch {backbone}\. .*--weights, .*--weights random"
    )
    with pytest.raises(ModelError, match=message):
        create_network(backbone, num_classes=3)


def test_create_network_closed_port_raises_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:  # bound and closed: a port without a listener
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(ModelError, match=r"127\.0\.0\.1 .*finetune fetch"):
        create_network("test_resnet", num_classes=3)


def test_create_network_hub_offline_raises_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE.*: finetune fetch test_resnet"):
        create_network("test_resnet", num_classes=3)


@pytest.mark.usefixtures("no_dns")
def test_check_cached_or_reachable_with_proxy_is_left_to_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = find_hub_weights("resnet18")
    assert weights is not None
    with pytest.raises(ModelError, match=r"huggingface\.co"):
        check_cached_or_reachable(weights, "resnet18")
    monkeypatch.setitem(os.environ, "HTTPS_PROXY", "http://proxy:3128")
    assert check_cached_or_reachable(weights, "resnet18") is None


@pytest.mark.usefixtures("no_dns")
def test_create_network_cached_weights_need_no_network(caches: Path) -> None:
    file = write_cached_resnet(caches)
    weights = find_hub_weights("test_resnet")
    assert weights is not None
    assert check_cached_or_reachable(weights, "test_resnet") == file
    report = create_network("test_resnet", num_classes=3).report
    assert (report.source, report.loaded_fraction) == ("hub (test_resnet)", 1)


@pytest.mark.usefixtures("no_dns")
def test_create_network_damaged_cache_raises_model_error_and_keeps_the_file(caches: Path) -> None:
    file = write_cached_resnet(caches)
    os.truncate(file, 1000)
    message = rf"damaged: {re.escape(str(file))}\. .*: finetune fetch test_resnet"
    with pytest.raises(ModelError, match=message):
        create_network("test_resnet", num_classes=3)
    assert file.stat().st_size == 1000


@pytest.mark.usefixtures("no_dns")
def test_create_network_complete_weights_reports_the_real_error(caches: Path) -> None:
    file = write_cached_resnet(caches)
    state = copy_state(timm.create_model("test_resnet"))
    save_file({**state, "layer1.0.conv1.weight": torch.zeros(1, 2, 3, 3)}, file)
    with pytest.raises(ModelError, match=r"^'test_resnet' .*size mismatch"):
        create_network("test_resnet", num_classes=3)
