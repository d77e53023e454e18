"""Tests of predicted class probabilities, against timm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.model_card import ModelCard
from finetune.data.images.source import MemorySource
from finetune.errors import ConfigError, DataError
from finetune.evaluation.priors import Priors
from finetune.inference.predictor import Predictor
from finetune.inference.tta import check_tta

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.fixture(scope="module")
def bundle(trained: FitResult) -> ModelBundle:
    return load_model(trained.run_dir)


@pytest.fixture(scope="module")
def files(insects: Path) -> list[Path]:
    return sorted(insects.rglob("*.png"))


def predict_with_timm(folder: Path, files: list[Path]) -> Tensor:
    """Return probabilities by timm alone: its loading, preprocessing and forward pass per image."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        rows = [network(transform(Image.open(f).convert("RGB"))[None]).softmax(1) for f in files]
    return torch.cat(rows)


def test_images_in_memory_have_the_probabilities_of_their_files(
    bundle: ModelBundle, files: list[Path]
) -> None:
    predictor = Predictor(bundle, device="cpu", batch_size=3)
    names = [f"upload {number}" for number in range(5)]
    items = [file.read_bytes() for file in files[:5]]
    items[3] = items[3][:99]
    unreadable: dict[int, str] = {}
    source = MemorySource(items, names)
    predictions = list(predictor.predict(source, unreadable=unreadable))
    expected = list(predictor.predict([*files[:3], files[4]]))
    assert [p.path for p in predictions] == [*names[:3], names[4]]
    for one, other in zip(predictions, expected, strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert unreadable == {3: "truncated PNG"}


def test_predict_proba_equals_timm_in_order_of_files(
    bundle: ModelBundle, files: list[Path]
) -> None:
    actual = Predictor(bundle, device="cpu").predict_proba(files[::-1])
    expected = predict_with_timm(bundle.source, files[::-1])
    assert actual.dtype == torch.float32
    assert actual.shape == (38, 3)
    assert float(actual.std(dim=0).min()) > 0.01, "equal predictions would not test the order"
    # two resizing implementations differ by up to 1/255 in a pixel
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_predict_proba_does_not_depend_on_batch_size(
    bundle: ModelBundle, files: list[Path], batch_size: int
) -> None:
    found = Predictor(bundle, device="cpu", batch_size=batch_size).predict_proba(files)
    expected = Predictor(bundle, device="cpu").predict_proba(files)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_predict_proba_does_not_depend_on_workers(bundle: ModelBundle, files: list[Path]) -> None:
    found = Predictor(bundle, device="cpu", num_workers=2).predict_proba(files)
    assert torch.equal(found, Predictor(bundle, device="cpu").predict_proba(files))


def test_predict_top_k_gives_most_probable_classes_first(
    bundle: ModelBundle, files: list[Path]
) -> None:
    predictor = Predictor(bundle, device="cpu")
    table = predictor.predict_proba(files).numpy()
    for top_k in (1, 2, 3, 9):
        for file, row, found in zip(
            files, table, predictor.predict(files, top_k=top_k), strict=True
        ):
            order = np.argsort(-row)[:top_k]
            assert found.path == str(file)
            assert found.labels == tuple(bundle.card.classes[k] for k in order)
            assert found.probabilities == tuple(row[order].tolist())


def test_predict_proba_on_batch_counts_images(bundle: ModelBundle, files: list[Path]) -> None:
    counts: list[int] = []
    Predictor(bundle, device="cpu", batch_size=16).predict_proba(files, on_batch=counts.append)
    assert counts == [16, 16, 6]


def test_predict_proba_without_files_is_empty(bundle: ModelBundle) -> None:
    assert Predictor(bundle, device="cpu").predict_proba([]).shape == (0, 3)


def test_predict_proba_unreadable_file_raises_data_error_with_path(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        Predictor(bundle, device="cpu").predict_proba([broken])


def replace_card(bundle: ModelBundle, *, temperature: float = 1.0, **facts: object) -> ModelBundle:
    """Return the same network with changed facts and temperature."""
    all_facts = {**bundle.card.facts, **facts}
    return replace(bundle, card=replace(bundle.card, facts=all_facts, temperature=temperature))


def compute_logits(bundle: ModelBundle, file: Path, *, flipped: bool = False) -> Tensor:
    """Return the logits of an image or its horizontal flip, with timm's preprocessing."""
    spec = bundle.card.spec
    transform = create_transform(
        input_size=spec.input_size,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        is_training=False,
    )
    image = Image.open(file).convert("RGB")
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with torch.inference_mode():
        logits: Tensor = bundle.network(transform(image)[None])[0]
    return logits


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_compute_probabilities_divides_logits_by_temperature(
    bundle: ModelBundle, files: list[Path], temperature: float
) -> None:
    plain = Predictor(bundle, device="cpu")
    calibrated = Predictor(replace_card(bundle, temperature=temperature), device="cpu")
    logits = plain.predict_logits(files)
    assert logits.shape == (38, 1, 3)
    assert torch.equal(calibrated.predict_logits(files), logits)
    found = calibrated.predict_proba(files)
    by_hand = torch.exp(logits[:, 0] / temperature)
    torch.testing.assert_close(found, by_hand / by_hand.sum(dim=1, keepdim=True))
    assert torch.equal(found.argmax(1), plain.predict_proba(files).argmax(1))
    predicted = next(calibrated.predict(files))
    assert predicted.probabilities[0] == pytest.approx(float(found[0].max()))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("target", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.3, 0.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_compute_probabilities_adjusts_each_view_to_target_prior(
    bundle: ModelBundle, target: tuple[float, ...], temperature: float
) -> None:
    model = (0.6, 0.3, 0.1)
    card = replace(bundle.card, temperature=temperature, priors=Priors(model, model, target))
    logits = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(2)) * 3
    found = Predictor(replace(bundle, card=card), device="cpu").compute_probabilities(logits)
    # Saerens et al. 2002, eq. 2.4: probabilities times the ratio of the priors, normalised
    views = softmax(logits.double().numpy() / temperature) * np.array(target) / np.array(model)
    expected = (views / views.sum(2, keepdims=True)).mean(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert (found[:, 2] == 0).all() == (target[2] == 0)


def test_compute_probabilities_without_target_prior_is_bit_identical_to_no_prior(
    bundle: ModelBundle,
) -> None:
    logits = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(2))
    expected = (logits / 0.7).softmax(dim=2).mean(dim=1)
    for priors in (None, Priors((0.6, 0.3, 0.1), (0.5, 0.3, 0.2))):
        card = replace(bundle.card, temperature=0.7, priors=priors)
        found = Predictor(replace(bundle, card=card), device="cpu").compute_probabilities(logits)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tta_is_mean_probability_of_image_and_flip(
    bundle: ModelBundle, files: list[Path], temperature: float
) -> None:
    flipping = replace_card(bundle, temperature=temperature, flipped=True)
    found = Predictor(flipping, device="cpu", batch_size=7, tta=True).predict_proba(files)
    plain = Predictor(flipping, device="cpu").predict_proba(files)
    assert float((found - plain).abs().max()) > 1e-3, "the flip must change the probabilities"
    for file, row in zip(files, found, strict=True):
        views = [compute_logits(flipping, file, flipped=flipped) for flipped in (False, True)]
        first, second = ((view / temperature).softmax(0) for view in views)
        torch.testing.assert_close(row, (first + second) / 2, rtol=0, atol=1e-5)


def test_tta_gives_flipped_file_same_probabilities(
    bundle: ModelBundle, files: list[Path], tmp_path: Path
) -> None:
    flipped = []
    for number, file in enumerate(files):
        # a width of 37 pixels leaves an odd margin around the crop
        image = Image.open(file).crop((0, 0, 37, 36))
        image.save(tmp_path / f"{number}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"{number} flipped.png")
        flipped.append(tmp_path / f"{number} flipped.png")
    files = [tmp_path / f"{number}.png" for number in range(len(files))]
    predictor = Predictor(replace_card(bundle, flipped=True), device="cpu", tta=True)
    found = predictor.predict_proba(files)
    torch.testing.assert_close(found, predictor.predict_proba(flipped), rtol=0, atol=1e-7)
    without = Predictor(bundle, device="cpu")
    difference = without.predict_proba(files) - without.predict_proba(flipped)
    assert float(difference.abs().max()) > 1e-3


def test_tta_keeps_batch_size(bundle: ModelBundle, files: list[Path]) -> None:
    sizes: list[int] = []
    predictor = Predictor(replace_card(bundle, flipped=True), device="cpu", batch_size=16, tta=True)
    counts: list[int] = []
    hook = predictor.network.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    predictor.predict_proba(files, on_batch=counts.append)
    hook.remove()
    assert sizes == [16, 16, 16, 16, 6, 6]
    assert counts == [16, 16, 6]
    assert predictor.predict_proba([]).shape == (0, 3)


def test_tta_without_training_on_flips_raises_config_error(bundle: ModelBundle) -> None:
    with pytest.raises(ConfigError, match=r"--tta .* augment\.name=none"):
        Predictor(bundle, device="cpu", tta=True)
    facts = {name: fact for name, fact in bundle.card.facts.items() if name != "flipped"}
    older = replace(bundle, card=replace(bundle.card, facts=facts))
    with pytest.raises(ConfigError, match=r"--tta .* older finetune"):
        Predictor(older, device="cpu", tta=True)


def test_tta_accepts_facts_of_version_0_1(bundle: ModelBundle) -> None:
    tree = bundle.card.to_json()
    del tree["facts"]["flipped"], tree["facts"]["flipped_by"]
    tree["facts"] |= {"mirrored": True, "mirrored_by": "augment.name=light"}
    check_tta(ModelCard.from_json(tree))
    tree["facts"]["mirrored"] = False
    with pytest.raises(ConfigError, match=r"--tta .* augment\.name=light"):
        check_tta(ModelCard.from_json(tree))
