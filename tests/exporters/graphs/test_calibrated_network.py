"""Tests of the modules that are exported, against the predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.bundle.model_card import ModelCard
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.evaluation.priors import Priors
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.graphs.calibrated_network import LogitsGraph, PhotoGraph
from finetune.exporters.graphs.graph_program import explain_graph_refusal
from finetune.inference.predictor import Predictor
from finetune.models.classifier import normalise
from finetune.models.mlp_head import MlpSettings, attach_mlp_head
from finetune.types import PreprocessSpec
from tests.exporters.graphs.test_photo_preprocessing import draw_photo
from tests.support.networks import randomise, set_batch_norm_statistics

CLASSES = ("a", "b", "c")
SPEC = PreprocessSpec((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.9)
TARGET = Priors(train=(0.5, 0.3, 0.2), model=(0.5, 0.3, 0.2), target=(0.1, 0.1, 0.8))


def create_bundle(
    classes: Sequence[str] = CLASSES,
    *,
    seed: int = 0,
    spec: PreprocessSpec = SPEC,
    temperature: float = 1.0,
    priors: Priors | None = None,
    thresholds: tuple[float, ...] | None = None,
    has_mlp: bool = False,
) -> ModelBundle:
    """Return a model whose outputs depend on the image."""
    torch.manual_seed(seed)
    channels = spec.input_size[0]
    network = timm.create_model("test_resnet", num_classes=len(classes), in_chans=channels)
    head = None
    if has_mlp:
        settings = MlpSettings(hidden=(8,))
        attach_mlp_head(network, settings)
        head = settings.to_json()
    randomise(network, seed=seed)
    set_batch_norm_statistics(network, torch.randn(4, *spec.input_size))
    card = ModelCard(
        "test_resnet",
        {},
        tuple(classes),
        spec,
        temperature=temperature,
        priors=priors,
        thresholds=thresholds,
        head=head,
    )
    return ModelBundle(network.eval(), card, Path("model"))


def write_photo(folder: Path, channels: int = 3) -> Path:
    """Write a photo of 41 x 57 pixels."""
    pixels = draw_photo(41, 57)
    file = folder / "photo.png"
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file)
    return file


MODELS: dict[str, Callable[[], ModelBundle]] = {
    "plain": create_bundle,
    "temperature and prior": lambda: create_bundle(temperature=0.4, priors=TARGET),
    "hidden layer": lambda: create_bundle(temperature=0.4, priors=TARGET, has_mlp=True),
    "multi-label": lambda: create_bundle(temperature=0.6, thresholds=(0.3, 0.5, 0.4)),
    "ensemble": lambda: combine_models(
        [create_bundle(temperature=0.5), create_bundle(("c", "a", "b"), seed=1, priors=TARGET)],
        weights=[0.3, 0.7],
    ),
    "ensemble of other normalisation": lambda: combine_models(
        [
            create_bundle(),
            create_bundle(seed=1, spec=replace(SPEC, mean=(0.5,) * 3, std=(0.5,) * 3)),
        ]
    ),
    "multi-label ensemble": lambda: combine_models(
        [create_bundle(seed=seed, thresholds=(0.3, 0.5, 0.4)) for seed in (0, 1)]
    ),
    "one channel": lambda: create_bundle(spec=PreprocessSpec((1, 32, 32), (0.4,), (0.3,))),
}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_give_probabilities_of_predictor(name: str, tmp_path: Path) -> None:
    bundle = MODELS[name]()
    card = bundle.card
    file = write_photo(tmp_path, card.spec.input_size[0])
    expected = Predictor(bundle, device="cpu").predict_proba([file]).float()

    source = Image.open(file)
    channels = card.spec.input_size[0]
    photo = torch.frombuffer(bytearray(source.tobytes()), dtype=torch.uint8)
    photo = photo.reshape(1, source.height, source.width, channels)
    with torch.inference_mode():
        probabilities = PhotoGraph(bundle).eval()(photo)
    assert torch.allclose(probabilities, expected, atol=5e-3)

    pixels = torch.from_numpy(EvalTransform(card.spec).to_pixels(source))
    pixels = pixels.reshape(1, 32, 32, channels)
    normalised = normalise(pixels, mean=card.spec.mean, std=card.spec.std)
    with torch.inference_mode():
        logits = LogitsGraph(bundle).eval()(normalised)
    calibrated = logits.sigmoid() if card.is_multi_label else logits.softmax(1)
    assert torch.allclose(calibrated, expected, atol=1e-5)


def test_graph_leaves_bundle_as_it_is() -> None:
    bundle = create_bundle(temperature=0.4, priors=TARGET)
    before = {name: value.clone() for name, value in bundle.network.state_dict().items()}
    LogitsGraph(bundle)
    after = bundle.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_explain_graph_refusal_names_members_of_other_sizes() -> None:
    larger = replace(SPEC, input_size=(3, 64, 64))
    bundle = combine_models([create_bundle(), create_bundle(spec=larger)])
    reason = explain_graph_refusal(bundle, ExportOptions(), "onnx")
    assert reason is not None
    assert "32 x 32 px" in reason
    assert "64 x 64 px" in reason
    assert "--include-preprocessing" in reason
    assert explain_graph_refusal(bundle, ExportOptions(includes_preprocessing=True), "x") is None


def test_explain_graph_refusal_names_16_bits() -> None:
    bundle = create_bundle()
    deep = replace(bundle, card=replace(bundle.card, bit_depth=16))
    reason = explain_graph_refusal(deep, ExportOptions(includes_preprocessing=True), "onnx")
    assert reason is not None
    assert "16 bits" in reason
    assert explain_graph_refusal(deep, ExportOptions(), "onnx") is None
