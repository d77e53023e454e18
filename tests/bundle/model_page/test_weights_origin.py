"""Origin of the weights that a run begins with, and their licence."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from finetune.bundle.bundle import save_bundle
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.bundle.model_page.initial_weights import describe_weights
from finetune.bundle.model_page.page_head import build_page_head
from finetune.bundle.model_page.weights_origin import (
    WeightsOrigin,
    find_strictest,
    find_weights_origin,
)
from finetune.models.backbone import create_network
from finetune.types import PreprocessSpec
from tests.support.hub_repositories import read_page_head

HUB = WeightsOrigin("hub", "timm/resnet18.a1_in1k", "apache-2.0")
RESTRICTED = WeightsOrigin("hub", "timm/convnextv2_atto.fcmae", "cc-by-nc-4.0")


def test_hub_weights_have_the_licence_that_timm_states() -> None:
    assert describe_weights("hub", "resnet18.a1_in1k") == HUB
    assert describe_weights("hub", "convnextv2_atto.fcmae") == RESTRICTED
    assert describe_weights("hub", "hf-hub:me/mine@main") == WeightsOrigin("hub", "me/mine")
    assert describe_weights("random", "resnet18") == WeightsOrigin("random")


def test_weights_of_a_repository_have_the_licence_of_its_cached_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models--me--mine"
    folder = store / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("0123abc", encoding="utf-8")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"license": "cc-by-nc-4.0"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    origin = describe_weights("hub", "hf-hub:me/mine")
    assert origin == WeightsOrigin("hub", "me/mine", "cc-by-nc-4.0")


@pytest.mark.parametrize("facts", [{"weights": "hub (convnextv2_atto.fcmae)"},
                                   {"weights": "a.pth", **RESTRICTED.to_facts()}])  # fmt: skip
def test_weights_of_an_own_model_keep_the_licence_of_its_backbone(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    built = create_network("test_resnet", num_classes=2, weights="random", image_size=32)
    card = ModelCard("test_resnet", built.model_args, ("a", "b"), built.spec, facts)
    save_bundle(built.module, card, tmp_path / "bundle")
    for path in (tmp_path, tmp_path / "bundle"):
        origin = describe_weights(str(path), "test_resnet")
        assert origin == WeightsOrigin("file", RESTRICTED.base_model, "cc-by-nc-4.0")
        assert "allows no commercial use" in origin.describe_restriction()
    (tmp_path / "bundle" / "finetune.json").write_text("{", encoding="utf-8")
    assert describe_weights(str(tmp_path), "test_resnet") == WeightsOrigin("file")


def test_config_json_has_the_licence_of_the_weights_that_were_used(tmp_path: Path) -> None:
    built = create_network("test_resnet", num_classes=2, weights="random", image_size=32)
    for name, weights in (("none", "random"), ("mit", "hub (hf-hub:a/b)")):
        facts = {"weights": weights, "base_model": "a/b", "weights_license": "mit"}
        card = ModelCard("test_resnet", built.model_args, ("a", "b"), built.spec, facts)
        save_bundle(built.module, card, tmp_path / name)
        config = (tmp_path / name / "config.json").read_text(encoding="utf-8")
        assert ('"license": "mit"' in config) is (name == "mit")
        assert "apache" not in config
        assert find_weights_origin(ModelCard.from_json(read_card_json(tmp_path / name))).kind in (
            "random", "hub",
        )  # fmt: skip


def test_several_origins_follow_the_strictest_licence() -> None:
    unknown = WeightsOrigin("file")
    assert find_strictest([HUB, unknown, RESTRICTED]) == RESTRICTED
    assert find_strictest([HUB, unknown]) == unknown
    assert find_strictest([WeightsOrigin("random"), HUB]) == WeightsOrigin("random")


@pytest.mark.parametrize(
    ("name", "written", "license_name"),
    [
        ("gpl-2.0", "gpl-2.0", None),
        ("ISC", "isc", None),
        ("Unlicense", "unlicense", None),
        ("bsl-1.0", "bsl-1.0", None),
        ("lgpl-2.1", "lgpl-2.1", None),
        ("cc-by-3.0", "cc-by-3.0", None),
        ("openrail++", "openrail++", None),
        ("eupl-1.2", "eupl-1.2", None),
        ("My-Terms-2", "other", "my-terms-2"),
    ],
)
def test_head_has_a_licence_as_the_hub_lists_it(
    name: str, written: str, license_name: str | None
) -> None:
    spec = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
    card = ModelCard("test_resnet", {}, ("a", "b"), spec, {})
    head = read_page_head(build_page_head(card, HUB, title="net", own_license=name))
    assert (head["license"], head.get("license_name")) == (written, license_name)
