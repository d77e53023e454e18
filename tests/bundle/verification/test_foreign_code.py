"""Models that name code: what is not the user's own is not executed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune.bundle.bundle import format_card_json, load_model, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.bundle.stored_network import build_stored_network
from finetune.errors import FinetuneError, ModelError
from finetune.models.backbone import create_network
from finetune.models.custom.code_trust import TRUST_VARIABLE, check_stored_code
from finetune.types import PreprocessSpec

CLASSES = ("ant", "bee")
NETWORK = """
from torch import nn
from pathlib import Path
Path({marker!r}).touch()

def create_model(num_classes, in_chans=3, **kwargs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bundle; never change it."""
    built = create_network("test_resnet", num_classes=2, weights="random", image_size=32)
    card = ModelCard("test_resnet", built.model_args, CLASSES, built.spec, {"weights": "random"})
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(built.module, card, folder)
    return folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return the file that code of the foreign model would create."""
    return tmp_path / "code ran"


@pytest.fixture
def evil(tmp_path: Path, marker: Path) -> Path:
    """Return a folder with code for torch.hub, and as a module."""
    folder = tmp_path / "evil"
    folder.mkdir()
    code = NETWORK.format(marker=str(marker))
    for name in ("hubconf.py", "net.py", "__init__.py"):
        (folder / name).write_text(code, encoding="utf-8")
    return folder


def build_entries(evil: Path) -> dict[str, Any]:
    """Return the arguments that make torch.hub run the code of a folder."""
    return {
        "repo_or_dir": str(evil), "model": "create_model", "source": "local", "trust_repo": True,
    }  # fmt: skip


def write_hub_folder(saved: Path, evil: Path, backbone: str, arguments: dict[str, Any]) -> Path:
    tree = {
        "architecture": backbone, "model_args": arguments, "num_classes": 2,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }  # fmt: skip
    (evil / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file({"2.weight": torch.zeros(2, 3), "2.bias": torch.zeros(2)}, evil / "model.safetensors")
    return evil


def write_bundle(saved: Path, evil: Path, backbone: str, arguments: dict[str, Any]) -> Path:
    """Write a bundle in a sub-folder, with the digests that belong to its entries."""
    folder = Path(shutil.copytree(saved, evil / "bundle"))
    tree = json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
    tree |= {"backbone": backbone, "model_args": arguments}
    tree.pop("digests")
    (folder / "finetune.json").write_text(format_card_json(tree), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"architecture": backbone, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return evil


def write_ensemble(saved: Path, evil: Path, backbone: str, arguments: dict[str, Any]) -> Path:
    save_ensemble([saved, saved], evil / "bundle")
    member = next((evil / "bundle").rglob("model.safetensors")).parent
    shutil.rmtree(member)
    (evil / "new").mkdir()
    write_bundle(saved, evil / "new", backbone, arguments)
    (evil / "new" / "bundle").rename(member)
    return evil


def write_checkpoint(saved: Path, evil: Path, backbone: str, arguments: dict[str, Any]) -> Path:
    card = json.loads((saved / "finetune.json").read_text(encoding="utf-8"))
    card |= {"backbone": backbone, "model_args": arguments}
    state = {
        f"classifier.network.{n}": v for n, v in load_model(saved).network.state_dict().items()
    }
    (evil / "checkpoints").mkdir()
    torch.save({CARD_KEY: card, "state_dict": state}, evil / "checkpoints" / "best.ckpt")
    return evil


WRITERS = (write_hub_folder, write_bundle, write_ensemble, write_checkpoint)


def refuse(path: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        load_model(path)
    return str(caught.value)


@pytest.mark.parametrize("write", WRITERS)
def test_model_that_names_torch_hub_runs_no_code(
    saved: Path, evil: Path, marker: Path, write: Callable[..., Path]
) -> None:
    path = write(saved, evil, "torch.hub:load", build_entries(evil))
    assert "not executed" in refuse(path)
    assert not marker.exists()
    load: Callable[..., object] = torch.hub.load
    load(**build_entries(evil), num_classes=2)  # the trap works
    assert marker.exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("backbone", ["evil.net:create_model", "evil:create_model"])
def test_model_in_working_folder_that_names_its_own_code_runs_none(
    saved: Path,
    evil: Path,
    marker: Path,
    write: Callable[..., Path],
    backbone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(evil.parent))
    path = write(saved, evil, backbone, {})
    for model in (path, *path.glob("bundle"), *path.glob("checkpoints/*")):
        assert "not executed" in refuse(model)
    assert not marker.exists()
    assert "evil" not in sys.modules


def test_hub_folder_may_name_no_code_at_all(saved: Path, evil: Path) -> None:
    path = write_hub_folder(saved, evil, "torchvision.models:squeezenet1_1", {})
    assert "names code, 'torchvision.models:squeezenet1_1', as the architecture" in refuse(path)


@pytest.mark.parametrize(
    "backbone",
    [
        "timm:create_model", "timm.models:create_model", "transformers:pipeline",
        "torch.serialization:load", "torchvision.models:get_model", "finetune:load_model",
        "finetune.models.backbone:create_network", "pytest:main", "subprocess:Popen",
        "torchvision.models:googlenet_", "torchvision.datasets:FakeData", "yaml:unsafe_load",
    ],
)  # fmt: skip
def test_stored_code_of_libraries_is_refused(tmp_path: Path, backbone: str) -> None:
    with pytest.raises(ModelError, match=f"not executed.*{TRUST_VARIABLE}="):
        check_stored_code(backbone, tmp_path)


def build(backbone: str, folder: Path, arguments: dict[str, Any] | None = None) -> None:
    """Load a network of random weights from its card, as in a process of its own."""
    spec = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
    card = ModelCard(backbone, arguments or {}, CLASSES, spec, {})
    name, _, attribute = backbone.partition(":")
    function = getattr(__import__(name, fromlist=[attribute]), attribute)
    state = function(num_classes=2).state_dict()
    build_stored_network(card, state, folder)


def test_stored_network_of_torchvision_is_built_without_downloads(tmp_path: Path) -> None:
    build("torchvision.models:shufflenet_v2_x0_5", tmp_path)
    check_stored_code("torchvision.models.squeezenet:SqueezeNet", tmp_path)
    with pytest.raises(ValueError, match="weights, which load other weights"):
        build("torchvision.models:shufflenet_v2_x0_5", tmp_path, {"weights": "DEFAULT"})


def test_stored_network_of_own_module_is_built(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_stored_net.py").write_text(NETWORK.format(marker=str(marker)), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    build("own_stored_net:create_model", tmp_path / "runs" / "latest")


def test_installed_code_is_executed_if_the_user_names_it(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "lib" / "site-packages"
    site.mkdir(parents=True)
    for name in ("installed_one", "installed_two"):
        (site / f"{name}.py").write_text(NETWORK.format(marker=str(marker)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    model = tmp_path / "model"
    with pytest.raises(ModelError, match="of an installed package"):
        check_stored_code("installed_one:create_model", model)
    monkeypatch.setenv(TRUST_VARIABLE, "other, installed_one")
    build("installed_one:create_model", model)
    with pytest.raises(ModelError, match="of an installed package"):
        check_stored_code("installed_two:create_model", model)
    create_network("installed_two:create_model", num_classes=2, weights="random")  # as fit does
    build("installed_two:create_model", model)


def test_trust_does_not_extend_to_the_folder_of_the_model(
    evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(evil.parent))
    monkeypatch.setenv(TRUST_VARIABLE, "evil")
    with pytest.raises(ModelError, match="in the same folder"):
        check_stored_code("evil.net:create_model", evil)
