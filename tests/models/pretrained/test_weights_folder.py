"""Search for the weights of a backbone in a folder."""

import re
from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.pretrained.weights_folder import find_weights


def make_folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet18", "resnet18.pth"),
        ("resnet18", "resnet18.safetensors"),
        ("resnet18", "resnet18-82c76769.pth"),
        ("resnet18", "resnet18-82c76769f0.pt"),
        ("resnet18.a1_in1k", "resnet18-82c76769.pth"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k.safetensors"),
        ("resnet18.a1_in1k", "resnet18.bin"),
        ("resnet50", "resnet50_a1_0-14fe96d1.pth"),
        ("resnet50", "resnet50.tv_in1k.safetensors"),
        ("vgg16", "vgg16-397923af.pth"),
        ("vgg16_bn", "vgg16_bn-6c64b313.pth"),
        ("mobilenetv2_100", "mobilenetv2_100_ra-b33bc2c4.pth"),
        ("wide_resnet50_2", "wide_resnet50_2-95faca4d.pth"),
        ("googlenet", "googlenet-1378be20.pth"),
    ],
)
def test_find_weights_finds_usual_file_names(backbone: str, name: str, tmp_path: Path) -> None:
    others = ("README.md", "resnet18d-48ed2d1f.pth", "vgg19_bn.pth", "resnet.pth", "LICENSE")
    folder = make_folder(tmp_path, name, *others)
    assert find_weights(folder, backbone) == folder / name


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet18", "resnet18d-48ed2d1f.pth"),
        ("vgg16", "vgg16_bn-6c64b313.pth"),
        ("resnet50", "resnet50_gn.pth"),
        ("resnet50", "wide_resnet50_2-95faca4d.pth"),
        ("resnet50", "seresnet50.pth"),
        ("resnet50.a1_in1k", "resnet50.tv_in1k.safetensors"),
        ("resnet18", "resnet18.txt"),
        ("resnet18", "resnet18-82c76769.pth.part"),
        ("resnet18", "resnet18/weights.pth"),
    ],
)
def test_find_weights_of_other_backbone_raises_model_error(
    backbone: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match=rf"{re.escape(str(tmp_path))} .*no weights .*'{re.escape(backbone)}'"
    ):
        find_weights(make_folder(tmp_path, name), backbone)


def test_find_weights_prefers_the_more_specific_name(tmp_path: Path) -> None:
    names = [
        "resnet18_own.pth", "resnet18/config.json", "resnet18-82c76769.pth", "resnet18.pth",
        "resnet18.a1_in1k.pth",
    ]  # fmt: skip
    for count in range(1, len(names) + 1):
        folder = make_folder(tmp_path, names[count - 1])
        file = find_weights(folder, "resnet18.a1_in1k")
        assert file == folder / names[count - 1].removesuffix("/config.json")


def test_find_weights_accepts_a_run_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "resnet18/bundle/config.json")
    assert find_weights(folder, "resnet18") == folder / "resnet18"


def test_find_weights_ambiguous_files_raise_model_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "resnet18.pth", "resnet18.safetensors", "resnet18_old.pth")
    with pytest.raises(ModelError, match=re.escape("resnet18.pth, resnet18.safetensors.")):
        find_weights(folder, "resnet18")


def test_find_weights_missing_lists_patterns_and_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "resnet18d-48ed2d1f.pth", "notes.txt")
    with pytest.raises(ModelError) as error:
        find_weights(folder, "resnet18")
    for expected in (
        str(folder), "'resnet18'", "resnet18.pth", "resnet18-<hash>.pth", "resnet18_<anything>.pth",
        "(.pth, .pt, .bin, .safetensors)", " resnet18/", ": notes.txt, resnet18d-48ed2d1f.pth.",
    ):  # fmt: skip
        assert expected in str(error.value)


def test_find_weights_missing_lists_at_most_12_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *(f"{number:02}.txt" for number in range(15)))
    with pytest.raises(ModelError, match=r"00.txt, .*, 11.txt and 3 more\.$"):
        find_weights(folder, "resnet18")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r": nothing\.$"):
        find_weights(tmp_path / "empty", "resnet18")
