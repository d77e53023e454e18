"""Freezing, proved on parameters, gradients and buffers; normalising against torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from finetune.models.backbone import create_network
from finetune.models.classifier import BatchNormMode, ImageClassifier, normalise
from tests.models.test_groups import Handmade
from tests.support.networks import changed, randomise, snapshot

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def _model(name: str = "test_resnet", *, batch_norm: BatchNormMode = "frozen") -> ImageClassifier:
    network = create_network(name, num_classes=3, weights="random", image_size=64).module
    randomise(network)
    return ImageClassifier(network, batch_norm=batch_norm)


def _live_statistics(model: ImageClassifier) -> set[str]:
    """Return the BatchNorm layers whose statistics a forward pass moves."""
    before = snapshot(model.network)
    model(IMAGES)
    return {name.rpartition(".")[0] for name in changed(before, model.network)}


def _batch_norms(model: ImageClassifier, groups: slice) -> set[str]:
    names = {name for group in model.groups[groups] for name in group.parameter_names}
    modules = model.network.named_modules()
    return {n for n, m in modules if isinstance(m, nn.BatchNorm2d) and f"{n}.weight" in names}


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_train_moves_the_statistics_of_trained_groups_alone(depth: int) -> None:
    model = _model(batch_norm="train")
    model.set_depth(depth)
    assert _live_statistics(model.train()) == _batch_norms(model, slice(0, depth))


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_frozen_keeps_the_statistics_but_trains_scale_and_shift(depth: int) -> None:
    model = _model(batch_norm="frozen")
    model.set_depth(depth)
    assert _live_statistics(model.train()) == set()
    for name in _batch_norms(model, slice(0, depth)):
        assert model.network.get_parameter(f"{name}.weight").requires_grad


def test_eval_mode_is_eval_mode_everywhere() -> None:
    model = _model(batch_norm="train")
    model.train()
    assert not any(module.training for module in model.eval().modules())


def test_a_module_that_holds_the_head_and_frozen_layers_trains() -> None:
    model = ImageClassifier(Handmade())
    model.set_depth(1)
    modules = model.train().network.named_modules()
    assert {name for name, m in modules if m.training} == {"", "head", "head.fc"}


def test_dropout_works_where_the_group_trains() -> None:
    model = _model("test_vit")
    drops = {name for name, m in model.network.named_modules() if isinstance(m, nn.Dropout)}
    model.set_depth(2)
    model.train()
    live = {name for name in drops if model.network.get_submodule(name).training}
    last = model.groups[1].name
    assert live
    assert {name for name in drops if name.startswith(f"{last}.")} <= live
    assert not {name for name in live if name.startswith(("patch_embed", "blocks.0."))}


def test_depth_goes_both_ways_and_twice_is_once() -> None:
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


def test_freezing_drops_a_gradient_that_is_left() -> None:
    model = _model()
    model(IMAGES).sum().backward()
    frozen = model.network.get_parameter(model.groups[-1].parameter_names[0])
    assert frozen.grad is not None
    model.set_depth(1)
    assert frozen.grad is None


def test_a_new_depth_keeps_the_mode() -> None:
    model = _model().eval()
    model.set_depth(3)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("depth", [0, 7, -1])
def test_a_depth_that_does_not_exist_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth {depth} is not in \[1, 6\]"):
        _model().set_depth(depth)


class Compiled(nn.Module):
    """Stands for what torch.compile returns, and counts its calls."""

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


def compiled(
    model: ImageClassifier, monkeypatch: pytest.MonkeyPatch, *, error: str = ""
) -> tuple[Compiled, str | None]:
    made = Compiled(model.network, error=error)
    monkeypatch.setattr(torch, "compile", lambda network: made)
    return made, model.compile_for_training(IMAGES)


@pytest.mark.parametrize("error", ["", "no compiler\nsee the documentation"])
def test_compiling_leaves_no_trace_but_itself(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(batch_norm="train").train()
    before, state = snapshot(model), torch.get_rng_state()
    made, reason = compiled(model, monkeypatch, error=error)
    assert made.calls == 1
    assert reason == ("RuntimeError: no compiler" if error else None)
    assert snapshot(model).keys() == before.keys()
    assert changed(before, model) == set()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, _ in model.named_children()] == ["network"]


def test_what_is_compiled_serves_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    made, _ = compiled(model, monkeypatch)
    model.eval()(IMAGES)
    assert made.calls == 1
    torch.testing.assert_close(model.train()(IMAGES), model.network(IMAGES))
    assert made.calls == 2


def test_without_a_compiler_the_network_serves_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().train()
    expected = model(IMAGES)
    made, _ = compiled(model, monkeypatch, error="no compiler")
    assert torch.equal(model(IMAGES), expected)
    assert made.calls == 1


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_normalise_is_torchvisions(mean: tuple[float, ...]) -> None:
    std = (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([transform(image) for image in pixels])
    images = torch.from_numpy(pixels)
    untouched = images.clone()
    found: Tensor = normalise(images, mean=mean, std=std)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, untouched)


def _colours(*, seed: int = 0) -> Tensor:
    """Return matrices and shifts of four images, of which the first changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.eye(3, 4) + torch.randn(4, 3, 4, generator=generator) * 0.3
    colour[0] = torch.eye(3, 4)
    return colour


def test_colours_change_before_normalising_and_are_clipped() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    colour = _colours()
    expected = np.empty((4, 3, 5, 7))
    clipped = 0
    for image, row, column, out in np.ndindex(4, 5, 7, 3):
        value = float(colour[image, out, 3])
        for channel in range(3):
            value += float(colour[image, out, channel]) * pixels[image, row, column, channel] / 255
        clipped += not 0 <= value <= 1
        value = min(1.0, max(0.0, value))
        expected[image, out, row, column] = (value - mean[out]) / std[out]
    assert clipped > 20
    images = torch.from_numpy(pixels)
    untouched = images.clone(), colour.clone()
    found = normalise(images, mean=mean, std=std, color_matrix=colour)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, untouched[0])
    assert torch.equal(colour, untouched[1])
    plain = normalise(images[:1], mean=mean, std=std)
    torch.testing.assert_close(found[:1], plain, rtol=0, atol=1e-5)


def test_mean_and_std_may_be_tensors_on_the_device() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    tensors = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    expected = normalise(images, mean=mean, std=std)
    assert torch.equal(normalise(images, **tensors), expected)
    assert torch.equal(tensors["mean"], torch.tensor(mean))


@pytest.mark.parametrize("color_matrix", [None, _colours()], ids=["plain", "coloured"])
def test_mixed_precision_rounds_no_pixel(colour: Tensor | None) -> None:
    images = torch.randint(0, 256, (4, 5, 7, 3), dtype=torch.uint8)
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "color_matrix": colour}
    expected = normalise(images, **settings)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        found = normalise(images, **settings)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
