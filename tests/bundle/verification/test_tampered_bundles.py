"""Bundles that were tampered with, truncated or put together of two models are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.model_card import ModelCard
from finetune.errors import RunFolderError
from finetune.models.backbone import create_network

Damage = Callable[[Path], object]


def save_model(folder: Path, *, classes: tuple[str, ...] = ("ant", "bee", "cow")) -> Path:
    built = create_network("test_resnet", num_classes=len(classes), weights="random", image_size=32)
    card = ModelCard("test_resnet", built.model_args, classes, built.spec, {"weights": "random"})
    save_bundle(built.module, card, folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bundle of three classes and one of four; never change it."""
    root = tmp_path_factory.mktemp("bundles")
    save_model(root / "bundle")
    save_model(root / "other", classes=("ant", "bee", "cow", "dog"))
    return root


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle of three classes, beside that of four classes."""
    return Path(shutil.copytree(saved, tmp_path / "models")) / "bundle"


def flip_bit(bundle: Path) -> None:
    file = bundle / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def edit_json(change: Callable[[dict[str, Any]], object], *, name: str = "finetune.json") -> Damage:
    def edit(bundle: Path) -> None:
        file = bundle / name
        tree = json.loads(file.read_text(encoding="utf-8"))
        change(tree)
        file.write_text(json.dumps(tree), encoding="utf-8")

    return edit


def mend_hash(bundle: Path, *, drops_digests: bool) -> None:
    """State the digest of the weights as they are, as somebody would who hides a change."""
    weights = (bundle / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    edit_json(lambda tree: tree.update(sha256=digest))(bundle)
    if drops_digests:
        edit_json(lambda tree: tree.pop("digests"))(bundle)


def rewrite_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Return a change of the tensors that also mends every hash."""

    def rewrite(bundle: Path) -> None:
        state = load_file(bundle / "model.safetensors")
        change(state)
        save_file(state, bundle / "model.safetensors")
        mend_hash(bundle, drops_digests=True)

    return rewrite


def swap(name: str) -> Damage:
    return lambda bundle: shutil.copy(bundle.parent / "other" / name, bundle / name)


def link(name: str, target: str) -> Damage:
    def replace_by_link(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).symlink_to(target)

    return replace_by_link


def flip_bit_and_mend_hash(bundle: Path) -> None:
    flip_bit(bundle)
    mend_hash(bundle, drops_digests=False)


def set_fc(value: float) -> Damage:
    return rewrite_weights(lambda state: state["fc.weight"].__setitem__((0, 0), value))


def reorder_classes(tree: dict[str, Any]) -> None:
    tree["classes"] = tree["classes"][::-1]


def reorder_classes_of_earlier_release(tree: dict[str, Any]) -> None:
    reorder_classes(tree)
    tree.pop("digests")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_bit, r"SHA-256 of model.safetensors is \w{12}… and not \w{12}…"),
        (flip_bit_and_mend_hash, "'sha256' differs from its digest"),
        (swap("model.safetensors"), "SHA-256"),
        (
            rewrite_weights(lambda state: state.pop("fc.bias")),
            r"do not fit the card: 'fc\.bias' is missing",
        ),
        (
            rewrite_weights(lambda state: state.update(extra=torch.zeros(3))),
            "'extra' is not of this network",
        ),
        (
            rewrite_weights(lambda state: state.update({"conv1.0.weight": torch.zeros(2, 3)})),
            r"'conv1\.0\.weight' has the shape \(2, 3\) instead of \(\d+, 3, ",
        ),
        (set_fc(float("nan")), r"1 of \d+ values of 'fc\.weight' .* NaN or infinite"),
        (set_fc(float("inf")), r"1 of \d+ values of 'fc\.weight' .* NaN or infinite"),
        (swap("finetune.json"), r"config.json is not that of finetune.json: 3 classes and not 4"),
        (swap("config.json"), r"config.json is not that of finetune.json: 4 classes and not 3"),
        (
            edit_json(lambda tree: tree.update(architecture="resnet18"), name="config.json"),
            "the architecture resnet18 and not test_resnet",
        ),
        (
            edit_json(
                lambda tree: tree["pretrained_cfg"].update(std=[1, 1, 1]), name="config.json"
            ),
            r"std \[1, 1, 1\] and not \[0.5",
        ),
        (edit_json(reorder_classes), "'classes' differs from its digest"),
        (
            edit_json(reorder_classes_of_earlier_release),
            "config.json .*the same classes in another order",
        ),
        (edit_json(lambda tree: tree.update(temperature=2.0)), "'temperature' differs"),
        (edit_json(lambda tree: tree["facts"].update(metrics={})), "'facts' differs"),
        (edit_json(lambda tree: tree.update(added=1)), "'added' differs"),
        (edit_json(lambda tree: tree.pop("priors")), "'priors' differs"),
        (edit_json(lambda tree: tree.update(digests=7)), "'digests' in finetune.json is no object"),
        (link("finetune.json", "/etc/passwd"), "is a link to /etc/passwd, outside of the folder"),
        (link("config.json", "/etc/passwd"), "is a link to /etc/passwd, outside of the folder"),
        (link("config.json", "nowhere"), "config.json is damaged: .*No such file"),
        (lambda b: (b / "config.json").write_text("{"), "config.json is damaged"),
        (lambda b: (b / "finetune.json").write_text("[" * 200_000), "nested too deeply"),
        (lambda b: (b / "config.json").write_text('{"a":' * 200_000), "nested too deeply"),
        (lambda b: os.truncate(b / "finetune.json", 2**33), "8,192 MB, and no more than 32 MB"),
        (
            edit_json(lambda tree: (tree.pop("digests"), tree.update(classes=["a"] * 3))),
            "'a' is listed twice",
        ),
        (
            edit_json(lambda tree: (tree.pop("digests"), tree.update(classes=[1, 2, 3]))),
            "classes .*no list of names",
        ),
        (
            edit_json(lambda tree: (tree.pop("digests"), tree["spec"].update(std=[1, 0, 1]))),
            r"std \(1, 0, 1\)",
        ),
        (
            edit_json(
                lambda tree: (tree.pop("digests"), tree["spec"].update(input_size=[3, 9, 10**9]))
            ),
            r"input_size \(3, 9, 1000000000\)",
        ),
        (
            edit_json(
                lambda tree: (
                    tree.pop("digests"),
                    tree.update(model_args={"checkpoint_path": "/etc/passwd"}),
                )
            ),
            "model_args has checkpoint_path",
        ),
    ],
)
def test_load_model_refuses_tampered_bundle_and_names_the_difference(
    bundle: Path, damage: Damage, message: str
) -> None:
    damage(bundle)
    with pytest.raises(RunFolderError, match=message) as caught:
        load_model(bundle)
    assert str(bundle) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_more_classes_than_rows_are_refused_before_a_network_is_built(bundle: Path) -> None:
    names = [f"class {number}" for number in range(500_000)]
    edit_json(lambda tree: (tree.pop("digests"), tree.update(classes=names)))(bundle)
    (bundle / "config.json").unlink()
    with pytest.raises(RunFolderError, match=r"500,000 classes, and no tensor"):
        load_model(bundle)


def test_files_of_a_hub_cache_are_links_into_its_store(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--user--name"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in bundle.iterdir():
        shutil.copy(file, blobs / f"blob of {file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob of {file.name}")
    assert load_model(snapshot).card == load_model(bundle).card


def test_ensemble_that_contains_itself_or_was_edited_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    model = load_model(bundle)
    folder = tmp_path / "ensemble"
    save_ensemble([model, model], folder)
    edit_json(lambda tree: tree["members"][0].update(weight=0.9))(folder)
    with pytest.raises(RunFolderError, match="'members' differs from its digest"):
        load_model(folder)
    (folder / "linked").symlink_to(bundle)
    change = {"folder": "linked", "weight": 0.5}
    edit_json(lambda tree: (tree.pop("digests"), tree["members"][0].update(change)))(folder)
    with pytest.raises(RunFolderError, match="link linked leads out of the folder"):
        load_model(folder)
    edit_json(lambda tree: tree["members"][0].update(folder="."))(folder)
    with pytest.raises(RunFolderError, match="a member of an ensemble is an ensemble"):
        load_model(folder)
