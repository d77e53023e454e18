"""Creation of networks: complete loading of weights, and errors with a remedy."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from finetune.errors import ConfigError, ModelError
from finetune.models.backbone import Network, create_network
from finetune.models.pretrained.weights import is_pretrained, read_state_dict
from tests.support.helpers import ROOT
from tests.support.networks import copy_state, find_changed, randomise

State = dict[str, Tensor]
NAME = "test_resnet"
REAL_WEIGHTS = ROOT.parent / "shared" / "weights"


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """Return a timm network of 10 classes whose weights no seed reproduces."""
    network: nn.Module = timm.create_model(NAME, num_classes=10)
    randomise(network)
    return network


@pytest.fixture
def state(reference: nn.Module) -> State:
    return copy_state(reference)


def _save(state: Mapping[str, Any], path: Path) -> str:
    torch.save(dict(state), path)
    return str(path)


def _load(weights: str, **options: Any) -> Network:
    return create_network(NAME, **{"num_classes": 3, "weights": weights, **options})


def _assert_loaded(network: Network, state: Mapping[str, Tensor], *, head: str = "fc") -> None:
    """Check every tensor of the backbone against the file, and the report against a count."""
    ours = network.module.state_dict()
    backbone = [name for name in ours if not name.startswith(f"{head}.")]
    for name in backbone:
        assert torch.equal(ours[name], state[name].to(ours[name].dtype)), name
    sizes = [p.numel() for n, p in network.module.named_parameters() if n in set(backbone)]
    assert network.report.num_loaded == network.report.num_parameters == sum(sizes)
    assert network.report.loaded_fraction == 1
    assert network.report.missing_keys == ()


FORMATS: Mapping[str, Callable[[State, Path], object]] = {
    "plain.pth": lambda state, path: torch.save(state, path),
    "old.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "plain.safetensors": lambda state, path: save_file(state, path),
    "nested.pth": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "parallel.bin": lambda state, path: torch.save(
        {"module." + name: value for name, value in state.items()}, path
    ),
    "both.pth": lambda state, path: torch.save(
        {"state_dict": {"module." + name: value for name, value in state.items()}}, path
    ),
    "averaged.pth": lambda state, path: torch.save(
        {"state_dict": {n: torch.zeros_like(v) for n, v in state.items()}, "state_dict_ema": state},
        path,
    ),
}


@pytest.mark.parametrize("file", FORMATS)
def test_create_network_local_file_loads_the_backbone(
    file: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / file
    FORMATS[file](state, path)
    network = _load(str(path))
    _assert_loaded(network, state)
    assert network.report.source == str(path)


def test_create_network_half_precision_weights_become_float32(state: State, tmp_path: Path) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    network = _load(_save(half, tmp_path / "w.pth"))
    _assert_loaded(network, half)
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}


def test_create_network_classifier_is_zero_if_the_file_has_as_many_classes(
    state: State, tmp_path: Path
) -> None:
    network = _load(_save(state, tmp_path / "w.pth"), num_classes=10)
    _assert_loaded(network, state)
    assert state["fc.weight"].any()
    assert not any(p.any() for p in network.module.fc.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("num_classes", [3, 1000])  # 1000 is the default of the architecture
def test_create_network_file_without_classifier_loads(
    num_classes: int, state: State, tmp_path: Path
) -> None:
    backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
    network = _load(_save(backbone, tmp_path / "w.pth"), num_classes=num_classes)
    _assert_loaded(network, state)


def test_create_network_resamples_position_embeddings(tmp_path: Path) -> None:
    reference = timm.create_model("test_vit", num_classes=10)
    path = _save(reference.state_dict(), tmp_path / "vit.pth")
    network = create_network("test_vit", num_classes=3, weights=path, image_size=64)
    assert network.report.loaded_fraction == 1
    assert network.spec.input_size == (3, 64, 64)
    assert network.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    block = "blocks.0.attn.qkv.weight"
    assert torch.equal(network.module.get_parameter(block), reference.get_parameter(block))


def _timm_folder(network: nn.Module, folder: Path) -> str:
    save_for_hf(network, str(folder), safe_serialization=True)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, state: State) -> Path:
    """Return a timm folder whose preprocessing differs from the architecture's default."""
    overlay = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 96, 96),
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "squash",
    }
    network = timm.create_model(NAME, num_classes=10, pretrained_cfg_overlay=overlay)
    network.load_state_dict(state)
    _timm_folder(network, tmp_path / "timm")
    return tmp_path / "timm"


def test_create_network_timm_folder_sets_the_preprocessing(folder: Path, state: State) -> None:
    network = _load(str(folder))
    _assert_loaded(network, state)
    spec = network.spec
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (spec.input_size, spec.interpolation) == ((3, 96, 96), "bilinear")
    assert (spec.crop_pct, spec.crop_mode) == (0.8, "squash")


def test_create_network_pretrained_cfg_overrides_the_folder(folder: Path) -> None:
    spec = _load(str(folder), pretrained_cfg={"mean": (0.7, 0.8, 0.9)}, image_size=80).spec
    assert (spec.mean, spec.std) == ((0.7, 0.8, 0.9), (0.4, 0.5, 0.6))
    assert spec.input_size == (3, 80, 80)


def test_create_network_run_folder_loads_its_bundle(folder: Path, state: State) -> None:
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "bundle")
    _assert_loaded(_load(str(run)), state)


def test_create_network_timm_folder_with_pickled_weights_loads(folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    _assert_loaded(_load(str(folder)), state)


def test_create_network_folder_of_other_architecture_raises_model_error(folder: Path) -> None:
    message = f"{re.escape(str(folder))}.*'{NAME}'.*'test_vit'.*--backbone {NAME}"
    with pytest.raises(ModelError, match=message):
        create_network("test_vit", num_classes=3, weights=str(folder))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "3"])
def test_create_network_folder_without_valid_config_raises_model_error(
    folder: Path, content: str | None
) -> None:
    config = folder / "config.json"
    config.unlink() if content is None else config.write_text(content)
    with pytest.raises(ModelError, match=rf"{re.escape(str(folder))}.*config\.json"):
        _load(str(folder))


def test_create_network_folder_without_weights_raises_model_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"{re.escape(str(folder))}.*model\.safetensors"):
        _load(str(folder))


@pytest.mark.parametrize("prefix", ["encoder.", "model."])
def test_create_network_prefixed_keys_raise_model_error_with_loaded_fraction(
    prefix: str, state: State, tmp_path: Path
) -> None:
    prefixed = {prefix + name: value for name, value in state.items()}
    path = _save({"state_dict": prefixed}, tmp_path / "w.ckpt")
    message = rf"\b0\.0% .*'conv1\.0\.weight'.*'{prefix}conv1\.0\.weight'.*prefix"
    with pytest.raises(ModelError, match=message):
        _load(path)


def test_create_network_weights_of_shallower_network_raise_model_error(
    reference: nn.Module, state: State, tmp_path: Path
) -> None:
    deeper = timm.create_model(NAME, layers=(1, 1, 1, 3))
    num_deeper = sum(p.numel() for n, p in deeper.named_parameters() if not n.startswith("fc."))
    num_loaded = sum(p.numel() for n, p in reference.named_parameters() if not n.startswith("fc."))
    assert num_loaded < num_deeper
    path = _save(state, tmp_path / "w.pth")
    percent = f"{num_loaded / num_deeper:.1%}"
    message = rf"\b{re.escape(percent)} .*'layer4\.1\.conv1\.weight'"
    with pytest.raises(ModelError, match=message):
        _load(path, kwargs={"layers": (1, 1, 1, 3)})


def test_create_network_other_shapes_raise_model_error(state: State, tmp_path: Path) -> None:
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    path = _save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"w\.pth .*'{NAME}'.*size mismatch.*--backbone"):
        _load(path)


def test_create_network_missing_batch_norm_statistics_raise_model_error(
    state: State, tmp_path: Path
) -> None:
    parameters = {name: value for name, value in state.items() if "running_" not in name}
    path = _save(parameters, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth .*BatchNorm statistics.*'[\w.]+\.running_mean'"):
        _load(path)


def test_create_network_missing_num_batches_tracked_is_accepted(
    state: State, tmp_path: Path
) -> None:
    old_state = {name: value for name, value in state.items() if "num_batches" not in name}
    assert len(old_state) < len(state)
    assert _load(_save(old_state, tmp_path / "w.pth")).report.loaded_fraction == 1


class _MaliciousObject:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


def test_create_network_pickled_code_is_not_executed(state: State, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = _save({**state, "extra": _MaliciousObject(marker)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth .*tensors.*state_dict\(\)"):
        _load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # without protection it is executed
    assert marker.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_read_state_dict_damaged_file_raises_model_error(
    name: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / name
    FORMATS["plain." + path.suffix[1:]](state, path)
    complete = path.read_bytes()
    for content in (complete[: len(complete) // 2], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(
            ModelError, match=rf"{path.name} (cannot be read as weights|is damaged)"
        ):
            read_state_dict(path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {}, torch.ones(2)])
def test_read_state_dict_other_content_raises_model_error(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth .*state dict.*torch\.save"):
        read_state_dict(tmp_path / "w.pth")


def test_create_network_weights_do_not_exist_raises_model_error() -> None:
    with pytest.raises(ModelError, match=r"--weights nowhere\.pth .*'hub'.*'random'"):
        _load("nowhere.pth")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet5O", r"'resnet5O'.*'resnet50'\?"),
        ("googlnet", r"'googlnet'.*'googlenet'\?"),
        ("resnet50.a1_in1", r"'resnet50'.*'a1_in1'.*'resnet50\.a1_in1k'\?"),
        (
            "local-dir:runs/x",
            r"'local-dir:runs/x'.*--backbone.*--weights",
        ),
    ],
)
def test_create_network_unknown_backbone_raises_model_error(backbone: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_network(backbone, num_classes=3, weights="random")


def test_create_network_unknown_kwargs_raise_model_error() -> None:
    with pytest.raises(ModelError, match=rf"model\.kwargs: '{NAME}' has no argument 'wings'"):
        _load("random", kwargs={"wings": 2})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"mean": 1}, "found mean=1, expected a list of numbers"),
        ({"std": [0, 0, 0]}, "expected a list of numbers above 0"),
        ({"input_size": 32}, "found input_size=32, expected channels and sides in pixels"),
        ({"crop_pct": 0}, "found crop_pct=0, expected a number above 0"),
        ({"interpolation": "x"}, "found interpolation=x, expected one of nearest"),
    ],
)
def test_preprocessing_of_a_wrong_form_names_the_right_one(
    cfg: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.pretrained_cfg: .*{message}"):
        _load("random", pretrained_cfg=cfg)


def test_unknown_preprocessing_and_reserved_arguments_name_the_key() -> None:
    with pytest.raises(ModelError, match=rf"^model\.pretrained_cfg: '{NAME}' has no preproc.*'x'"):
        _load("random", pretrained_cfg={"x": 1})
    with pytest.raises(ModelError, match=r"^model\.kwargs: 'num_classes' comes from the images"):
        _load("random", kwargs={"num_classes": 2})


def test_create_network_other_channels_than_the_images_raises_model_error() -> None:
    with pytest.raises(ModelError, match=r"1 input channel,.*with 3.*data\.channels=1"):
        _load("random", kwargs={"in_chans": 1})
    with pytest.raises(ModelError, match=r"4 input channels.*with 3.*input_size"):
        _load("random", pretrained_cfg={"input_size": (4, 64, 64)})


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_create_network_adapts_the_first_convolution_as_timm_does(
    channels: int, state: State, tmp_path: Path
) -> None:
    network = _load(_save(state, tmp_path / "w.pth"), num_channels=channels)

    weight = network.module.state_dict()["conv1.0.weight"]
    rgb = state["conv1.0.weight"]
    expected = (
        rgb.sum(1, keepdim=True)
        if channels == 1
        else torch.stack([rgb[:, i % 3] for i in range(channels)], 1) * 3 / channels
    )
    assert torch.allclose(weight, expected)
    assert network.report.loaded_fraction == 1
    mean = _load("random").spec.mean
    assert network.spec.input_size[0] == len(network.spec.mean) == len(network.spec.std) == channels
    assert network.spec.mean == pytest.approx(
        [sum(mean) / 3] if channels == 1 else [mean[i % 3] for i in range(channels)]
    )
    assert network.model_args["in_chans"] == channels
    rebuilt = timm.create_model(NAME, num_classes=3, **network.model_args)
    rebuilt.load_state_dict(network.module.state_dict())


def _write_channels(channels: int, folder: Path) -> tuple[Path, Path, Tensor]:
    """Return a timm folder and a file with weights for some channels, and the first ones."""
    module = _load("random", num_channels=channels, seed=5).module
    state = copy_state(module)
    _timm_folder(module, folder / "timm")
    torch.save(state, folder / "weights.pth")
    return folder / "timm", folder / "weights.pth", state["conv1.0.weight"]


def test_create_network_adapts_grey_weights_of_a_folder_to_colours(tmp_path: Path) -> None:
    folder, _, grey = _write_channels(1, tmp_path)
    network = _load(str(folder), num_channels=3)
    weight = network.module.state_dict()["conv1.0.weight"]
    assert torch.allclose(weight, grey.expand(-1, 3, -1, -1) / 3)
    assert network.spec.input_size[0] == len(network.spec.mean) == 3
    rebuilt = timm.create_model(NAME, num_classes=3, **network.model_args)
    rebuilt.load_state_dict(network.module.state_dict())


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_create_network_refuses_weights_of_more_bands_by_name(
    num_channels: int, tmp_path: Path
) -> None:
    folder, file, _ = _write_channels(6, tmp_path)
    for source in (folder, file):
        with pytest.raises(ModelError, match=rf"{source} has weights for .*data\.channels"):
            _load(str(source), num_channels=num_channels)
    assert _load(str(folder), num_channels=6).report.loaded_fraction == 1


def test_create_network_random_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = _load("random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    same, other = _load("random", seed=1), _load("random", seed=2)
    assert not find_changed(copy_state(first.module), same.module)
    assert "conv1.0.weight" in find_changed(copy_state(first.module), other.module)


def test_create_network_random_weights_reports_none_loaded() -> None:
    report = _load("random").report
    assert (report.source, report.num_loaded) == ("random", 0)
    assert report.num_parameters > 0
    assert [is_pretrained(w) for w in ("random", "hub", "a.pth")] == [False, True, True]


def test_create_network_keeps_no_copy_of_the_weights(state: State, tmp_path: Path) -> None:
    original = nn.Module.load_state_dict
    module = _load(_save(state, tmp_path / "w.pth")).module
    cfg: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    assert not any(isinstance(value, dict | Tensor) for value in cfg.values())
    assert cfg["num_classes"] == module.num_classes == 3
    json.dumps(cfg)
    assert nn.Module.load_state_dict is original


def test_create_network_applies_drop_rate() -> None:
    assert _load("random", drop_rate=0.3).module.drop_rate == 0.3


def test_create_network_uses_cached_hub_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Load hub weights with the file where torch.hub would have stored it."""
    state = copy_state(timm.create_model("googlenet"))
    cfg = timm.get_pretrained_cfg("googlenet")
    assert cfg is not None
    file = tmp_path / "hub" / "checkpoints" / Path(str(cfg.url)).name
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = create_network("googlenet", num_classes=3)
    _assert_loaded(network, state)
    assert network.report.source == "hub (googlenet)"


@pytest.mark.parametrize(
    ("backbone", "file", "head", "options"),
    [
        ("resnet18", "resnet18-82c76769.pth", "fc", {}),
        ("resnet50", "resnet50-e1ca79ee.pth", "fc", {}),
        (
            "mobilenetv2_100",
            "mobilenetv2_100-f803422a.pth",
            "classifier",
            {
                "kwargs": {"pad_type": "same"},
                "pretrained_cfg": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
            },
        ),
    ],
)
def test_create_network_loads_real_weights(
    backbone: str, file: str, head: str, options: Mapping[str, Any]
) -> None:
    path = REAL_WEIGHTS / file
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    network = create_network(backbone, num_classes=2, weights=str(path), **options)
    _assert_loaded(network, torch.load(path, weights_only=True), head=head)
    expected = options.get("pretrained_cfg", {}).get("mean", (0.485, 0.456, 0.406))
    assert network.spec.mean == expected
