"""Networks of one's own: what is supplied, and what is said to be missing."""

import copy
import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finetune.errors import ModelError
from finetune.models.backbone import Network, create_network
from finetune.models.classifier import ImageClassifier
from finetune.models.custom.code_import import compute_code_digest
from finetune.models.head import compute_backbone_digest, find_linear_head
from finetune.models.layer_groups import find_layer_groups
from tests.support.helpers import ROOT

_numbers = itertools.count()
EXAMPLES = ROOT / "scripts" / "examples"
HEADER = "from torch import nn\nimport torch\n"
PLAIN = """
def create_model(num_classes, in_chans=3):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, num_classes),
    )
"""


class Modules:
    """Folder of modules on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str) -> str:
        """Write a module of a new name and return the import path of its ``create_model``."""
        name = f"own_network_{next(_numbers)}"
        (self.folder / f"{name}.py").write_text(HEADER + code, encoding="utf-8")
        importlib.invalidate_caches()
        return f"{name}:create_model"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Modules(tmp_path)


def _create(backbone: str, **options: object) -> Network:
    return create_network(backbone, **{"num_classes": 3, "weights": "random", **options})  # type: ignore[arg-type]


def test_plain_network_gets_classifier_groups_and_default_preprocessing(modules: Modules) -> None:
    network = _create(modules.write(PLAIN), image_size=16)

    head = find_linear_head(network.module)
    assert head is network.module.get_submodule("7")
    assert not head.weight.any(), "the classifier starts at zero"
    assert [group.name for group in find_layer_groups(network.module)] == ["head", "5", "0"]
    assert network.spec.input_size == (3, 16, 16)
    assert network.spec.mean == (0.5, 0.5, 0.5)
    assert {"input_size", "mean", "std"} <= set(network.missing_keys)
    assert set(network.module.state_dict()) == set(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Flatten(),
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3),
        ).state_dict()
    )  # fmt: skip


def test_copies_have_classifiers_of_their_own(modules: Modules) -> None:
    network = _create(modules.write(PLAIN), image_size=16).module
    copied = copy.deepcopy(network)
    assert find_linear_head(copied) is copied.get_submodule("7")
    assert find_linear_head(network) is network.get_submodule("7")


def test_statistics_stay_as_the_function_leaves_them(modules: Modules) -> None:
    network = _create(modules.write(PLAIN), image_size=16).module
    layer = network.get_submodule("1")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.state_dict()["running_mean"], torch.zeros(4))


def test_random_weights_are_a_function_of_the_seed(modules: Modules) -> None:
    backbone = modules.write(PLAIN)
    one, same, other = (_create(backbone, image_size=16, seed=s).module for s in (1, 1, 2))
    assert torch.equal(one.get_submodule("0").weight, same.get_submodule("0").weight)  # type: ignore[arg-type]
    assert not torch.equal(one.get_submodule("0").weight, other.get_submodule("0").weight)  # type: ignore[arg-type]


def test_stated_contract_is_kept(modules: Modules) -> None:
    backbone = modules.write(
        """
class Own(nn.Module):
    def __init__(self, num_classes, in_chans=3, img_size=24, width=4):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, width, 3)
        self.block = nn.Conv2d(width, width, 3)
        self.fc = nn.Linear(width, num_classes)
        self.pretrained_cfg = {"input_size": (3, img_size, img_size), "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "crop_pct": 0.9}
    def get_classifier(self):
        return self.fc
    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "blocks": r"^block"}
    def forward(self, x):
        return self.fc(self.block(self.stem(x)).mean((2, 3)))
create_model = Own
"""
    )
    network = _create(backbone, kwargs={"width": 5}, num_channels=4, image_size=20)

    assert network.module.get_submodule("stem").weight.shape == (5, 4, 3, 3)
    assert [group.name for group in find_layer_groups(network.module)] == ["head", "block", "stem"]
    spec = network.spec
    assert (spec.input_size, spec.mean) == ((4, 20, 20), (0.1, 0.2, 0.3, 0.1))
    assert (spec.interpolation, spec.crop_pct) == ("bilinear", 0.9)
    assert network.missing_keys == ("crop_mode",)
    assert network.model_args == {"width": 5, "in_chans": 4}
    assert network.module.pretrained_cfg["architecture"] == backbone  # type: ignore[index]


def test_torchvision_network_needs_no_changes() -> None:
    network = _create("torchvision.models:resnet18", image_size=32)
    names = [group.name for group in find_layer_groups(network.module)]
    assert names == ["head", "layer4", "layer3", "layer2", "layer1", "conv1"]
    classifier = ImageClassifier(network.module)
    classifier.set_depth(2)
    trained = {name for name, p in classifier.network.named_parameters() if p.requires_grad}
    assert trained == {n for n in trained if n.startswith(("layer4", "fc"))} != set()
    with pytest.raises(ModelError, match="channels"):
        _create("torchvision.models:resnet18", image_size=32, num_channels=4)


def test_local_weights_are_loaded_and_reported(modules: Modules, tmp_path: Path) -> None:
    backbone = modules.write(PLAIN)
    source = _create(backbone, image_size=16, seed=3, num_classes=9).module
    with torch.no_grad():
        source.get_submodule("7").weight.fill_(2)  # type: ignore[operator]
    torch.save(source.state_dict(), tmp_path / "own.pth")

    network = _create(backbone, image_size=16, weights=str(tmp_path / "own.pth"))

    assert torch.equal(network.module.get_submodule("0").weight, source.get_submodule("0").weight)  # type: ignore[arg-type]
    assert network.report.loaded_fraction == 1
    other = modules.write(PLAIN.replace("4, 6", "4, 8").replace("6, num", "8, num"))
    with pytest.raises(ModelError, match="does not match"):
        _create(other, image_size=16, weights=str(tmp_path / "own.pth"))


def test_hub_weights_are_refused_by_name(modules: Modules) -> None:
    with pytest.raises(ModelError, match=r"hub cannot apply.*--weights random"):
        _create(modules.write(PLAIN), weights="hub")


DEFINITION = "def create_model(num_classes):\n    "
POOLED = f"{DEFINITION}return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
FAULTS = {
    f"{DEFINITION}return 3": "returns an object of type int, not a torch",
    "def create_model(classes): return 3": "no parameter num_classes.*def create_model",
    "create_model = 3": "not a function",
    "x = 1": "has no 'create_model'",
    "1 / 0": "importing .* fails with ZeroDivisionError",
    f"{DEFINITION}raise KeyError('depth')": "fails with KeyError",
    f"{DEFINITION}return nn.Sequential(nn.Flatten(), nn.Linear(9, num_classes))": (
        r"fails on images of shape \(3, 224, 224\).*--image-size.*pretrained_cfg"
    ),
    f"{POOLED}nn.Linear(3, 7))": (
        r"returns \(2, 7\) in training mode for 2 images, not logits of shape \(2, 3\)"
    ),
    f"{POOLED}nn.Linear(3, num_classes), nn.ReLU())": "no method get_classifier.*return self",
    f"{POOLED}nn.Linear(3, num_classes), nn.Softmax(1))": "ends with Softmax, its layer '3'",
    f"{POOLED}nn.Linear(3, num_classes), nn.Sigmoid())": "ends with Sigmoid, its layer '3'",
    f"{DEFINITION}return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))": (
        r"without a shape: 1\.weight, 1\.bias.*nn\.Linear"
    ),
    f"{DEFINITION}return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(2), nn.Flatten())": (
        r"returns \(2, 150528\)"
    ),
}


@pytest.mark.parametrize("code", FAULTS)
def test_missing_parts_are_named(modules: Modules, code: str) -> None:
    with pytest.raises(ModelError, match=FAULTS[code]):
        _create(modules.write(code))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("mode", ["True", "self.training", "not self.training"])
def test_probabilities_are_refused_in_place_of_logits(
    modules: Modules, name: str, mode: str
) -> None:
    code = f"""
class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
    def get_classifier(self):
        return self.fc
    def forward(self, x):
        logits = self.fc(x.mean((2, 3)))
        return logits.{name}(1) if {mode} else logits
create_model = Own
"""
    with pytest.raises(ModelError, match=f"output of a {name}, not logits.*sum to 1"):
        _create(modules.write(code))


def test_standard_library_is_refused() -> None:
    with pytest.raises(ModelError, match="standard library"):
        _create("subprocess:Popen")


@pytest.mark.parametrize("backbone", ["torch.hub:load", "timm:create_model", "torch:add"])
def test_function_without_a_named_number_of_classes_is_refused(backbone: str) -> None:
    with pytest.raises(ModelError, match="no parameter num_classes"):
        _create(backbone)


def test_features_of_changed_code_are_others(modules: Modules) -> None:
    backbone = modules.write(PLAIN)
    before = _create(backbone, image_size=16).module
    digest = compute_backbone_digest(before)
    name = backbone.partition(":")[0]
    file = modules.folder / f"{name}.py"
    file.write_text(HEADER + PLAIN.replace("nn.ReLU()", "nn.GELU()"), encoding="utf-8")
    del sys.modules[name]
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    after = _create(backbone, image_size=16).module
    assert torch.equal(before.get_submodule("0").weight, after.get_submodule("0").weight)  # type: ignore[arg-type]
    assert compute_backbone_digest(after) != digest
    assert compute_code_digest(after, backbone) == compute_code_digest(after, backbone)


def test_example_is_the_network_of_the_tutorials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    network = _create("small_cnn:create_model", num_classes=10, num_channels=1)

    module = network.module
    layers = [type(layer).__name__ for layer in module.modules() if not list(layer.children())]
    assert layers == [
        "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout", "Flatten", "Linear", "ReLU",
        "Dropout", "Linear",
    ]  # fmt: skip
    assert [group.name for group in find_layer_groups(module)] == ["head", "dense", "features"]
    assert network.spec.input_size == (1, 28, 28)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 1, 28, 28))).float()
    assert module.eval()(images).shape == (4, 10)
    larger = _create("small_cnn:create_model", image_size=32)
    assert larger.spec.input_size == (3, 32, 32)
