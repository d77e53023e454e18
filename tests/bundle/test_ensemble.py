"""Ensembles as one bundle: their probabilities, files, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finetune.bundle import model_card
from finetune.bundle.bundle import ModelBundle, combine_models, load_model, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.model_card import ModelCard, read_class_names
from finetune.errors import ModelError, RunFolderError
from finetune.evaluation.priors import Priors
from finetune.inference.predictor import Predictor
from finetune.models.backbone import create_network
from finetune.types import PixelRange
from tests.support.helpers import create_noise, list_tree
from tests.support.networks import randomise, set_batch_norm_statistics

CLASSES = ("ant", "bee", "fly")


def build_model(
    folder: Path,
    *,
    seed: int,
    classes: Sequence[str] = CLASSES,
    backbone: str = "test_resnet",
    size: int = 32,
    temperature: float = 1.0,
    priors: Priors | None = None,
    **facts: Any,
) -> ModelBundle:
    """Return a model that was written to a folder and loaded again."""
    built = create_network(backbone, num_classes=len(classes), weights="random", image_size=size)
    randomise(built.module, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    set_batch_norm_statistics(built.module, torch.randn(8, 3, size, size, generator=generator))
    spec = replace(built.spec, crop_pct=0.9, interpolation="bilinear")
    card = ModelCard(backbone, built.model_args, tuple(classes), spec, facts, temperature, priors)
    save_bundle(built.module, card, folder)
    return load_model(folder)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        tint = Image.new("RGB", (40 + number, 36), ["red", "lime", "blue", "white"][number % 4])
        noise = create_noise(seed=number, width=40 + number, height=36)
        Image.blend(noise, tint, 0.4).save(path)
    return paths


def predict_with_timm(bundle: ModelBundle, files: Sequence[Path]) -> Tensor:
    """Return the probabilities of a bundle by timm and plain arithmetic."""
    network = timm.create_model(f"local-dir:{bundle.source}", pretrained=True).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        images = (transform(Image.open(f).convert("RGB"))[None] for f in files)
        logits = torch.cat([network(image) for image in images]) / bundle.card.temperature
    if bundle.card.shift is not None:
        logits = logits + torch.tensor(bundle.card.shift)
    return logits.softmax(1)


def predict(bundle: ModelBundle, files: Sequence[Path], **options: Any) -> Tensor:
    return Predictor(bundle, device="cpu", **options).predict_proba(files)


@pytest.mark.parametrize("weights", [None, (3, 1, 0)])
def test_ensemble_is_weighted_mean_of_calibrated_members(
    tmp_path: Path, files: list[Path], weights: tuple[float, ...] | None
) -> None:
    """Members differ in temperature, prior, size, backbone and the order of their classes."""
    model, target = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)
    members = [
        build_model(tmp_path / "a", seed=1, temperature=0.4, priors=Priors(model, model, target)),
        build_model(tmp_path / "b", seed=2, size=48, classes=("fly", "ant", "bee")),
        build_model(tmp_path / "c", seed=3, backbone="test_convnext", temperature=2),
    ]
    save_ensemble(members, tmp_path / "e", weights=weights)
    ensemble = load_model(tmp_path / "e")
    assert ensemble.card.classes == CLASSES
    shares = [1 / 3] * 3 if weights is None else [0.75, 0.25, 0]
    assert ensemble.weights == pytest.approx(shares)
    expected = torch.zeros(7, 3)
    for member, share in zip(members, shares, strict=True):
        order = [member.card.classes.index(name) for name in CLASSES]
        expected += share * predict_with_timm(member, files)[:, order]
    found = predict(ensemble, files, batch_size=3)
    # two resizing implementations differ by up to 1/255 in a pixel
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert float(found.std(dim=0).min()) > 1e-3, "equal predictions would prove nothing"
    exact = sum(
        share * predict(member, files)[:, [member.card.classes.index(name) for name in CLASSES]]
        for member, share in zip(members, shares, strict=True)
    )
    torch.testing.assert_close(found, exact)


def test_ensemble_of_loaded_and_given_models_is_bit_identical(
    tmp_path: Path, files: list[Path]
) -> None:
    members = [build_model(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    saved = save_ensemble([tmp_path / "a", tmp_path / "b"], tmp_path / "e")
    adhoc = predict(combine_models(members), files)
    assert torch.equal(predict(saved, files), adhoc)
    assert torch.equal(predict(load_model(tmp_path / "e"), files), adhoc)


@pytest.mark.parametrize("tta", ["hflip", "crops", "crops10", "sizes"])
def test_ensemble_averages_views_in_probabilities(
    tmp_path: Path, files: list[Path], tta: str
) -> None:
    members = [
        build_model(tmp_path / "a", seed=1, temperature=0.3, flipped=True),
        build_model(tmp_path / "b", seed=2, size=48, flipped=True),
    ]
    ensemble = combine_models(members, weights=(0.2, 0.8))
    found = predict(ensemble, files, tta=tta)
    expected = 0.2 * predict(members[0], files, tta=tta) + 0.8 * predict(members[1], files, tta=tta)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, predict(ensemble, files), atol=1e-4)


def test_members_with_own_pixel_ranges_read_files_by_them(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray((torch.rand(36, 40).numpy() * 4000).astype("uint16")).save(deep)
    plain = build_model(tmp_path / "a", seed=1)
    narrow = build_model(tmp_path / "b", seed=2)
    card = replace(narrow.card, pixel_range=PixelRange(0, 4095))
    narrow = replace(narrow, card=card)
    found = predict(combine_models([plain, narrow]), [deep])
    expected = (predict(plain, [deep]) + predict(narrow, [deep])) / 2
    torch.testing.assert_close(found, expected)
    as_plain = predict(replace(narrow, card=plain.card), [deep])
    assert not torch.allclose(predict(narrow, [deep]), as_plain, atol=1e-3)


def test_ensemble_folder_has_bundles_of_members(tmp_path: Path, files: list[Path]) -> None:
    members = [build_model(tmp_path / n, seed=s, temperature=0.5) for s, n in enumerate("ab")]
    facts = {"metrics": {"test": {"accuracy": 0.875}}}
    save_ensemble(members, tmp_path / "e", weights=(2, 1), facts=facts)
    assert [name for name in list_tree(tmp_path / "e") if name.count("/") < 2] == [
        "README.md", "finetune.json", "members", "members/0", "members/1",
    ]  # fmt: skip
    tree = json.loads((tmp_path / "e" / "finetune.json").read_text())
    assert (tree["format"], tree["kind"], tree["classes"]) == (2, "ensemble", list(CLASSES))
    assert [member["weight"] for member in tree["members"]] == pytest.approx([2 / 3, 1 / 3])
    assert read_class_names(tmp_path / "e") == CLASSES
    alone = load_model(tmp_path / "e" / "members" / "1")
    assert torch.equal(predict(alone, files), predict(members[1], files))
    readme = (tmp_path / "e" / "README.md").read_text()
    assert "| test | accuracy | 0.8750 |" in readme
    assert "0.6667" in readme
    assert load_model(tmp_path / "e").card.facts["metrics"] == facts["metrics"]


def test_run_folder_may_hold_ensemble_and_replaces_it(tmp_path: Path, files: list[Path]) -> None:
    models = [build_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    save_ensemble(models, tmp_path / "run" / "bundle")
    save_ensemble(models[:2], tmp_path / "run" / "bundle")
    loaded = load_model(tmp_path / "run")
    assert len(loaded.members) == 2
    assert torch.equal(predict(loaded, files), predict(combine_models(models[:2]), files))
    assert list_tree(tmp_path / "run")[0] == "bundle"


def test_ensemble_of_ensembles_has_flat_members(tmp_path: Path, files: list[Path]) -> None:
    models = [build_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    pair = combine_models(models[:2], weights=(1, 3))
    ensemble = combine_models([pair, models[2]])
    assert ensemble.weights == pytest.approx((1 / 8, 3 / 8, 1 / 2))
    expected = (predict(pair, files) + predict(models[2], files)) / 2
    torch.testing.assert_close(predict(ensemble, files), expected)


def test_earlier_releases_refuse_ensemble_with_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_card, "FORMAT_VERSION", 1)
    save_ensemble([build_model(tmp_path / "a", seed=1)], tmp_path / "e")
    tree = json.loads((tmp_path / "e" / "finetune.json").read_text())
    # all releases read a card by this function before anything else
    with pytest.raises(RunFolderError, match=r"newer release .*format 2.* Upgrade finetune"):
        ModelCard.from_json(tree)


def test_different_classes_raise_error_that_names_them(tmp_path: Path) -> None:
    one = build_model(tmp_path / "a", seed=1)
    other = build_model(tmp_path / "b", seed=2, classes=("ant", "bee", "wasp"))
    with pytest.raises(ModelError, match=r"only .*a has 'fly'; only .*b has 'wasp'") as error:
        save_ensemble([one, other], tmp_path / "e")
    assert not (tmp_path / "e").exists()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", [(1,), (0, 0), (1, -1), (float("nan"), 1)])
def test_invalid_weights_raise_value_error(tmp_path: Path, weights: tuple[float, ...]) -> None:
    models = [build_model(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(ValueError, match="weights"):
        combine_models(models, weights=weights)


def damage_member(folder: Path) -> None:
    file = folder / "members" / "1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def change_json(folder: Path, **changes: Any) -> None:
    file = folder / "finetune.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_member, r"members.1 is damaged .*SHA-256"),
        (lambda folder: shutil.rmtree(folder / "members" / "0"), r"members.0.*missing"),
        (lambda folder: change_json(folder, members=[]), r"damaged .*no members"),
        (
            lambda folder: change_json(folder, members=[{"folder": "../x", "weight": 1}]),
            r"damaged .*outside",
        ),
        (lambda folder: change_json(folder, members=[{"folder": "a"}]), r"damaged .*weight"),
        (lambda folder: change_json(folder, format=3), r"newer release .*format 3"),
    ],
)  # fmt: skip
def test_damaged_ensemble_raises_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    models = [build_model(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    save_ensemble(models, tmp_path / "e")
    damage(tmp_path / "e")
    with pytest.raises(RunFolderError, match=message) as error:
        load_model(tmp_path / "e")
    assert "\n" not in str(error.value)


def test_priors_of_ensemble_are_means_and_common_target(tmp_path: Path) -> None:
    uniform = (1 / 3, 1 / 3, 1 / 3)
    one, other = (0.5, 0.3, 0.2), (0.3, 0.3, 0.4)
    for targets, expected in (
        ((uniform, uniform), Priors((0.4, 0.3, 0.3), (0.4, 0.3, 0.3), uniform)),
        ((None, None), Priors((0.4, 0.3, 0.3), (0.4, 0.3, 0.3))),
    ):
        priors = [Priors(p, p, t) for p, t in zip((one, other), targets, strict=True)]
        members = [build_model(tmp_path / str(n), seed=n, priors=p) for n, p in enumerate(priors)]
        found = combine_models(members).card.priors
        assert found is not None
        assert found.train == pytest.approx(expected.train)
        assert found.model == pytest.approx(expected.model)
        assert (found.target is None) == (expected.target is None)
    without = build_model(tmp_path / "x", seed=5)
    assert combine_models([members[0], without]).card.priors is None


def test_train_counts_of_ensemble_are_means_of_known_ones(tmp_path: Path) -> None:
    counts = [{"ant": 10, "bee": 20, "fly": 5}, {"ant": 12, "bee": 18, "fly": 5}]
    models = [build_model(tmp_path / str(n), seed=n, train_images=c) for n, c in enumerate(counts)]
    assert combine_models(models).card.train_counts == (11, 19, 5)
    unknown = build_model(tmp_path / "x", seed=5)
    assert combine_models([*models, unknown]).card.train_counts is None


def test_ensemble_of_multi_label_models_averages_probabilities_and_thresholds(
    tmp_path: Path, files: list[Path]
) -> None:
    models = []
    for seed, (classes, thresholds) in enumerate(
        ((CLASSES, (0.2, 0.4, 0.6)), (("fly", "ant", "bee"), (0.8, 0.4, 0.2)))
    ):
        model = build_model(tmp_path / str(seed), seed=seed, classes=classes)
        models.append(replace(model, card=replace(model.card, thresholds=thresholds)))
    ensemble = save_ensemble(models, tmp_path / "e")
    assert ensemble.card.thresholds == pytest.approx((0.3, 0.3, 0.7))
    assert load_model(tmp_path / "e").card.thresholds == ensemble.card.thresholds
    expected = (predict(models[0], files) + predict(models[1], files)[:, [1, 2, 0]]) / 2
    torch.testing.assert_close(predict(ensemble, files), expected)
    assert not torch.allclose(expected.sum(1), torch.ones(7, dtype=expected.dtype))
    single = build_model(tmp_path / "x", seed=5)
    with pytest.raises(ModelError, match=r"any number of labels .* one class"):
        combine_models([models[0], single])
