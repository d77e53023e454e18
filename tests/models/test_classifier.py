"""Freezing, checked on parameters, gradients and buffers; normalisation against torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from finetune.models.backbone import create_network
from finetune.models.classifier import BatchNormMode, ImageClassifier, normalise
from tests.models.test_layer_groups import Handmade
from tests.support.networks import copy_state, find_changed, randomise

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def _model(name: str = "test_resnet", *, batch_norm: BatchNormMode = "frozen") -> ImageClassifier:
    network = create_network(name, num_classes=3, weights="random", image_size=64).module
    randomise(network)
    return ImageClassifier(network, batch_norm=batch_norm)


def _live_statistics(model: ImageClassifier) -> set[str]:
    """Return the BatchNorm layers whose statistics a forward pass moves."""
    before = copy_state(model.network)
    model(IMAGES)
    return {name.rpartition(".")[0] for name in find_changed(before, model.network)}


def _batch_norms(model: ImageClassifier, groups: slice) -> set[str]:
    names = {name for group in model.groups[groups] for name in group.parameter_names}
    modules = model.network.named_modules()
    return {n for n, m in modules if isinstance(m, nn.BatchNorm2d) and f"{n}.weight" in names}


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_train_mode_updates_statistics_of_trained_groups_only(depth: int) -> None:
    model = _model(batch_norm="train")
    model.set_depth(depth)
    assert _live_statistics(model.train()) == _batch_norms(model, slice(0, depth))


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_batch_norm_frozen_keeps_statistics_and_trains_scale_and_shift(depth: int) -> None:
    model = _model(batch_norm="frozen")
    model.set_depth(depth)
    assert _live_statistics(model.train()) == set()
    for name in _batch_norms(model, slice(0, depth)):
        assert model.network.get_parameter(f"{name}.weight").requires_grad


def test_eval_sets_eval_mode_in_all_modules() -> None:
    model = _model(batch_norm="train")
    model.train()
    assert not any(module.training for module in model.eval().modules())


def test_train_module_of_head_and_frozen_layers_is_in_train_mode() -> None:
    model = ImageClassifier(Handmade())
    model.set_depth(1)
    modules = model.train().network.named_modules()
    assert {name for name, m in modules if m.training} == {"", "head", "head.fc"}


def test_train_dropout_is_active_in_trained_groups_only() -> None:
    model = _model("test_vit")
    drops = {name for name, m in model.network.named_modules() if isinstance(m, nn.Dropout)}
    model.set_depth(2)
    model.train()
    live = {name for name in drops if model.network.get_submodule(name).training}
    last = model.groups[1].name
    assert live
    assert {name for name in drops if name.startswith(f"{last}.")} <= live
    assert not {name for name in live if name.startswith(("patch_embed", "blocks.0."))}


def test_set_depth_freezes_and_unfreezes_idempotently() -> None:
    model = _model(batch_norm="train").train()
    counts = []
    for depth in (1, 6, 6, 2, 1):
        model.set_depth(depth)
        model(IMAGES).sum().backward()
        parameters = model.network.named_parameters()
        trained = {n for n, p in parameters if p.requires_grad and p.grad is not None}
        assert trained == {name for g in model.groups[:depth] for name in g.parameter_names}
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    total = sum(p.numel() for p in model.parameters())
    assert counts[0] < counts[3] < counts[1] == counts[2] == total
    assert counts[0] == counts[4]


def test_set_depth_removes_gradients_of_frozen_parameters() -> None:
    model = _model()
    model(IMAGES).sum().backward()
    frozen = model.network.get_parameter(model.groups[-1].parameter_names[0])
    assert frozen.grad is not None
    model.set_depth(1)
    assert frozen.grad is None


def test_set_depth_keeps_eval_mode() -> None:
    model = _model().eval()
    model.set_depth(3)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("depth", [0, 7, -1])
def test_set_depth_out_of_range_raises_value_error(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth {depth} is not in \[1, 6\]"):
        _model().set_depth(depth)


class Compiled(nn.Module):
    """Stand-in for the result of torch.compile that counts its calls."""

    def __init__(self, network: nn.Module, *, error: str = "") -> None:
        super().__init__()
        self.network = network
        self.error = error
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.network(images)
        if self.error:
            raise RuntimeError(self.error)
        return logits


def compile_with_stand_in(
    model: ImageClassifier, monkeypatch: pytest.MonkeyPatch, *, error: str = ""
) -> tuple[Compiled, str | None]:
    compiled = Compiled(model.network, error=error)
    monkeypatch.setattr(torch, "compile", lambda network: compiled)
    return compiled, model.compile_for_training(IMAGES)


@pytest.mark.parametrize("error", ["", "no compiler\nsee the documentation"])
def test_compile_for_training_keeps_state_and_returns_the_error(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(batch_norm="train").train()
    before, state = copy_state(model), torch.get_rng_state()
    compiled, reason = compile_with_stand_in(model, monkeypatch, error=error)
    assert compiled.calls == 1
    assert reason == ("RuntimeError: no compiler" if error else None)
    assert copy_state(model).keys() == before.keys()
    assert find_changed(before, model) == set()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, _ in model.named_children()] == ["network"]


def test_compiled_network_is_used_in_train_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    compiled, _ = compile_with_stand_in(model, monkeypatch)
    model.eval()(IMAGES)
    assert compiled.calls == 1
    torch.testing.assert_close(model.train()(IMAGES), model.network(IMAGES))
    assert compiled.calls == 2


def test_compile_for_training_fails_keeps_the_plain_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model().train()
    expected = model(IMAGES)
    compiled, _ = compile_with_stand_in(model, monkeypatch, error="no compiler")
    assert torch.equal(model(IMAGES), expected)
    assert compiled.calls == 1


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_normalise_matches_torchvision(mean: tuple[float, ...]) -> None:
    std = (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([transform(image) for image in pixels])
    images = torch.from_numpy(pixels)
    original = images.clone()
    actual: Tensor = normalise(images, mean=mean, std=std)
    assert torch.equal(actual, expected)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, original)


def _make_color_matrix(*, seed: int = 0) -> Tensor:
    """Return colour transforms of four images, the first of which is the identity."""
    generator = torch.Generator().manual_seed(seed)
    color_matrix = torch.eye(3, 4) + torch.randn(4, 3, 4, generator=generator) * 0.3
    color_matrix[0] = torch.eye(3, 4)
    return color_matrix


def test_normalise_color_matrix_is_applied_before_and_clipped() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    color_matrix = _make_color_matrix()
    expected = np.empty((4, 3, 5, 7))
    clipped = 0
    for image, row, column, out in np.ndindex(4, 5, 7, 3):
        value = float(color_matrix[image, out, 3])
        for channel in range(3):
            value += (
                float(color_matrix[image, out, channel]) * pixels[image, row, column, channel] / 255
            )
        clipped += not 0 <= value <= 1
        value = min(1.0, max(0.0, value))
        expected[image, out, row, column] = (value - mean[out]) / std[out]
    assert clipped > 20
    images = torch.from_numpy(pixels)
    originals = images.clone(), color_matrix.clone()
    actual = normalise(images, mean=mean, std=std, color_matrix=color_matrix)
    torch.testing.assert_close(actual.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, originals[0])
    assert torch.equal(color_matrix, originals[1])
    plain = normalise(images[:1], mean=mean, std=std)
    torch.testing.assert_close(actual[:1], plain, rtol=0, atol=1e-5)


def test_normalise_accepts_tensors_of_mean_and_std() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    tensors = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    expected = normalise(images, mean=mean, std=std)
    assert torch.equal(normalise(images, **tensors), expected)
    assert torch.equal(tensors["mean"], torch.tensor(mean))


@pytest.mark.parametrize(
    "color_matrix", [None, _make_color_matrix()], ids=["no color matrix", "color matrix"]
)
def test_normalise_in_autocast_keeps_float32(color_matrix: Tensor | None) -> None:
    images = torch.randint(0, 256, (4, 5, 7, 3), dtype=torch.uint8)
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "color_matrix": color_matrix}
    expected = normalise(images, **settings)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        actual = normalise(images, **settings)  # type: ignore[arg-type]
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
