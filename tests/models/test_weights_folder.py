"""Which file of a folder is a backbone's."""

import re
from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.weights_folder import find_weights


def folder_of(tmp_path: Path, *names: str) -> Path:
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
def test_a_name_as_the_world_writes_it_is_found(backbone: str, name: str, tmp_path: Path) -> None:
    others = ("README.md", "resnet18d-48ed2d1f.pth", "vgg19_bn.pth", "resnet.pth", "LICENSE")
    folder = folder_of(tmp_path, name, *others)
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
def test_weights_of_another_backbone_are_not_taken(
    backbone: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"holds no weights for '{re.escape(backbone)}'"):
        find_weights(folder_of(tmp_path, name), backbone)


def test_the_nearer_name_wins(tmp_path: Path) -> None:
    names = [
        "resnet18_own.pth", "resnet18/config.json", "resnet18-82c76769.pth", "resnet18.pth",
        "resnet18.a1_in1k.pth",
    ]  # fmt: skip
    for count in range(1, len(names) + 1):
        folder = folder_of(tmp_path, names[count - 1])
        found = find_weights(folder, "resnet18.a1_in1k")
        assert found == folder / names[count - 1].removesuffix("/config.json")


def test_a_run_folder_of_the_name_is_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "resnet18/bundle/config.json")
    assert find_weights(folder, "resnet18") == folder / "resnet18"


def test_two_that_fit_alike_are_refused_by_their_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "resnet18.pth", "resnet18.safetensors", "resnet18_old.pth")
    with pytest.raises(ModelError, match=re.escape("resnet18.pth, resnet18.safetensors. Keep one")):
        find_weights(folder, "resnet18")


def test_what_is_missing_is_said_with_what_lies_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "resnet18d-48ed2d1f.pth", "notes.txt")
    with pytest.raises(ModelError) as caught:
        find_weights(folder, "resnet18")
    assert str(caught.value) == (
        f"{folder} holds no weights for 'resnet18': neither resnet18.pth, resnet18-<hash>.pth or "
        f"resnet18_<anything>.pth (.pth, .pt, .bin, .safetensors) nor a timm folder resnet18/. "
        f"There are: notes.txt, resnet18d-48ed2d1f.pth."
    )


def test_of_many_files_some_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{number:02}.txt" for number in range(15)))
    with pytest.raises(ModelError, match=r"00.txt, .*, 11.txt and 3 more\.$"):
        find_weights(folder, "resnet18")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"There are: nothing\.$"):
        find_weights(tmp_path / "empty", "resnet18")
