"""Class probabilities of images."""

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
from finetune.errors import ConfigError, DataError
from finetune.evaluation.priors import Priors
from finetune.inference.predictor import Predictor

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.fixture(scope="module")
def bundle(trained: FitResult) -> ModelBundle:
    return load_model(trained.run_dir)


@pytest.fixture(scope="module")
def files(insects: Path) -> list[Path]:
    return sorted(insects.rglob("*.png"))


def of_timm(folder: Path, files: list[Path]) -> Tensor:
    """Return what timm alone says: its own loading, preprocessing and forward pass, one by one."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        rows = [network(transform(Image.open(f).convert("RGB"))[None]).softmax(1) for f in files]
    return torch.cat(rows)


def test_probabilities_are_those_of_timm_in_the_order_of_the_files(
    bundle: ModelBundle, files: list[Path]
) -> None:
    ours = Predictor(bundle, device="cpu").predict_proba(files[::-1])
    theirs = of_timm(bundle.source, files[::-1])
    assert ours.dtype == torch.float32
    assert ours.shape == (38, 3)
    assert float(ours.std(dim=0).min()) > 0.01, "images that all look alike prove no order"
    # two resizing codes differ by up to 1/255 in a pixel
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_matter(
    bundle: ModelBundle, files: list[Path], batch_size: int
) -> None:
    found = Predictor(bundle, device="cpu", batch_size=batch_size).predict_proba(files)
    expected = Predictor(bundle, device="cpu").predict_proba(files)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_reading_processes_change_nothing(bundle: ModelBundle, files: list[Path]) -> None:
    found = Predictor(bundle, device="cpu", num_workers=2).predict_proba(files)
    assert torch.equal(found, Predictor(bundle, device="cpu").predict_proba(files))


def test_the_most_probable_classes_come_first(bundle: ModelBundle, files: list[Path]) -> None:
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


def test_progress_counts_every_image(bundle: ModelBundle, files: list[Path]) -> None:
    counts: list[int] = []
    Predictor(bundle, device="cpu", batch_size=16).predict_proba(files, on_batch=counts.append)
    assert counts == [16, 16, 6]


def test_no_files_give_no_rows(bundle: ModelBundle) -> None:
    assert Predictor(bundle, device="cpu").predict_proba([]).shape == (0, 3)


def test_a_file_that_cannot_be_read_is_named(bundle: ModelBundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        Predictor(bundle, device="cpu").predict_proba([broken])


def with_card(bundle: ModelBundle, *, temperature: float = 1.0, **facts: object) -> ModelBundle:
    """Return the same network with another card."""
    known = {**bundle.card.facts, **facts}
    return replace(bundle, card=replace(bundle.card, facts=known, temperature=temperature))


def answers(bundle: ModelBundle, file: Path, *, mirrored: bool = False) -> Tensor:
    """Return the logits of one file, by timm's preprocessing, of the image or its mirror image."""
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
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with torch.inference_mode():
        logits: Tensor = bundle.network(transform(image)[None])[0]
    return logits


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_logits_are_divided_by_the_temperature(
    bundle: ModelBundle, files: list[Path], temperature: float
) -> None:
    plain = Predictor(bundle, device="cpu")
    calibrated = Predictor(with_card(bundle, temperature=temperature), device="cpu")
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
def test_calibrated_logits_are_moved_to_the_target_prior_in_each_view(
    bundle: ModelBundle, target: tuple[float, ...], temperature: float
) -> None:
    model = (0.6, 0.3, 0.1)
    card = replace(bundle.card, temperature=temperature, priors=Priors(model, model, target))
    logits = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(2)) * 3
    found = Predictor(replace(bundle, card=card), device="cpu").compute_probabilities(logits)
    # by Saerens et al. 2002, eq. 2.4: probabilities times the ratio of the priors, made one again
    views = softmax(logits.double().numpy() / temperature) * np.array(target) / np.array(model)
    expected = (views / views.sum(2, keepdims=True)).mean(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert (found[:, 2] == 0).all() == (target[2] == 0)


def test_without_a_target_the_bits_are_those_of_a_card_that_knows_no_prior(
    bundle: ModelBundle,
) -> None:
    logits = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(2))
    expected = (logits / 0.7).softmax(dim=2).mean(dim=1)
    for priors in (None, Priors((0.6, 0.3, 0.1), (0.5, 0.3, 0.2))):
        card = replace(bundle.card, temperature=0.7, priors=priors)
        found = Predictor(replace(bundle, card=card), device="cpu").compute_probabilities(logits)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tta_is_the_mean_probability_of_an_image_and_its_mirror_image(
    bundle: ModelBundle, files: list[Path], temperature: float
) -> None:
    shown = with_card(bundle, temperature=temperature, mirrored=True)
    found = Predictor(shown, device="cpu", batch_size=7, tta=True).predict_proba(files)
    plain = Predictor(shown, device="cpu").predict_proba(files)
    assert float((found - plain).abs().max()) > 1e-3, "the mirror image says something else"
    for file, row in zip(files, found, strict=True):
        views = [answers(shown, file, mirrored=mirrored) for mirrored in (False, True)]
        first, second = ((view / temperature).softmax(0) for view in views)
        torch.testing.assert_close(row, (first + second) / 2, rtol=0, atol=1e-5)


def test_with_tta_a_mirrored_file_gets_the_same_probabilities(
    bundle: ModelBundle, files: list[Path], tmp_path: Path
) -> None:
    mirrored = []
    for number, file in enumerate(files):
        # 37 pixels leave an odd number beside the crop
        image = Image.open(file).crop((0, 0, 37, 36))
        image.save(tmp_path / f"{number}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"{number} mirrored.png")
        mirrored.append(tmp_path / f"{number} mirrored.png")
    own = [tmp_path / f"{number}.png" for number in range(len(files))]
    predictor = Predictor(with_card(bundle, mirrored=True), device="cpu", tta=True)
    found = predictor.predict_proba(own)
    torch.testing.assert_close(found, predictor.predict_proba(mirrored), rtol=0, atol=1e-7)
    without = Predictor(bundle, device="cpu")
    difference = without.predict_proba(own) - without.predict_proba(mirrored)
    assert float(difference.abs().max()) > 1e-3


def test_tta_passes_no_more_images_at_once(bundle: ModelBundle, files: list[Path]) -> None:
    seen: list[int] = []
    predictor = Predictor(with_card(bundle, mirrored=True), device="cpu", batch_size=16, tta=True)
    counts: list[int] = []
    hook = predictor.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    predictor.predict_proba(files, on_batch=counts.append)
    hook.remove()
    assert seen == [16, 16, 16, 16, 6, 6]
    assert counts == [16, 16, 6]
    assert predictor.predict_proba([]).shape == (0, 3)


def test_tta_is_refused_where_training_showed_no_mirror_image(bundle: ModelBundle) -> None:
    with pytest.raises(ConfigError, match=r"--tta cannot apply .* augment\.name=none: it has seen"):
        Predictor(bundle, device="cpu", tta=True)
    facts = {name: fact for name, fact in bundle.card.facts.items() if name != "mirrored"}
    older = replace(bundle, card=replace(bundle.card, facts=facts))
    with pytest.raises(ConfigError, match="--tta cannot apply: an older finetune wrote the model"):
        Predictor(older, device="cpu", tta=True)
