"""What a step costs: against counts by hand, against what torch really keeps, and left no trace."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.functional import normalize

from finetune.builders import Training
from finetune.data.dataset import Batch
from finetune.models.classifier import ImageClassifier
from finetune.training import step_cost as cost
from finetune.training.module import ClassificationModule, Recipe
from finetune.training.param_groups import build_param_groups, create_optimizer
from finetune.training.step_cost import StepCost, StepProfiler
from finetune.types import Draw, PreprocessSpec
from tests.support.networks import snapshot
from tests.support.runs import assert_same_bits, small_training

PIXELS = 3 * 8 * 8
FLOAT, HALF, INDEX = 4, 2, 8  # bytes of a number


class Chain(nn.Module):
    """Linear layers: autograd keeps the input of each that trains or has one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, 50)
        self.second = nn.Linear(50, 20)
        self.head = nn.Linear(20, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu()
        logits: Tensor = self.head(self.second(hidden).relu())
        return logits


class Convolutions(nn.Module):
    """A convolution and a pool, which keeps where each maximum was."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * 4 * 4, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stem(images).relu()).flatten(1))
        return logits


Criterion = Callable[[Tensor, Tensor], Tensor]


def total(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss for which autograd keeps nothing."""
    del labels
    return logits.sum()


def module_of(
    network: nn.Module, *, criterion: Criterion = total, optimizer: str = "adamw"
) -> ClassificationModule:
    def make_optimizer(classifier: ImageClassifier) -> Optimizer:
        rates = [0.1] * len(classifier.groups)
        groups = build_param_groups(
            classifier.network, classifier.groups, learning_rates=rates, weight_decay=0.0
        )
        return create_optimizer(optimizer, groups, momentum=0.9)

    recipe = Recipe(
        criterion_schedule=lambda epoch: criterion,
        depth_schedule=lambda epoch: 1,
        make_optimizer=make_optimizer,
        lr_lambda=lambda step: 1.0,
        seed=0,
    )
    spec = PreprocessSpec((3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return ClassificationModule(
        ImageClassifier(network), spec=spec, classes="abc", recipe=recipe, card={}
    )


def images_of(size: int, *, count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    rows = torch.arange(count)
    return Batch(image=image, label=rows % 3, index=rows)


def meter_of(
    module: ClassificationModule, *, batch_size: int = 8, precision: str = "32-true"
) -> StepProfiler:
    return StepProfiler(
        module,
        images_of(module.spec.input_size[-1]),
        batch_size=batch_size,
        device=torch.device("cpu"),
        precision=precision,
    )


def measured(training: Training, depth: int, **settings: Any) -> StepCost:
    return meter_of(training.module, **settings).measure(depth)


@pytest.fixture(autouse=True)
def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few images do: their time is of no interest in most tests."""
    monkeypatch.setattr(cost, "_MAX_STEP_SECONDS", 1e-9)


@pytest.mark.parametrize(
    ("depth", "numbers"), [(3, PIXELS + 50 + 20), (2, 50 + 20), (1, 20)], ids=lambda value: value
)
def test_a_chain_keeps_the_inputs_of_what_trains(depth: int, numbers: int) -> None:
    found = meter_of(module_of(Chain())).measure(depth)
    assert found.activation_bytes == FLOAT * numbers
    assert found.fixed_bytes == 0


def test_a_convolution_keeps_its_input_and_a_pool_the_places_of_its_maxima() -> None:
    found = meter_of(module_of(Convolutions())).measure(2)
    images, before, after = 3 * 8 * 8, 4 * 8 * 8, 4 * 4 * 4
    assert found.activation_bytes == FLOAT * (images + before + after) + INDEX * after
    assert found.fixed_bytes == 0


def test_half_precision_halves_what_is_kept_and_adds_a_copy_of_the_weights() -> None:
    found = meter_of(module_of(Chain()), precision="bf16-mixed").measure(3)
    assert found.activation_bytes == HALF * (PIXELS + 50 + 20)
    # the first layer's weights are not needed: nothing before it trains
    assert found.fixed_bytes == HALF * (50 * 20 + 20 * 3)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows every tensor's memory that an operation made and that is still in use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = {
            a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if torch.is_tensor(a)
        }
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in own:
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._made[storage._cdata] = (reference, storage.nbytes())
        return result

    def num_bytes(self) -> int:
        gone = [c for c, (ref, _) in self._made.items() if ref.expired()]  # type: ignore[no-untyped-call]
        for storage in gone:
            del self._made[storage]
        return sum(size for _, size in self._made.values())


def kept(module: ClassificationModule, depth: int, size: int) -> int:
    """Return the memory that a forward pass leaves in use, but for the loss itself."""
    module.classifier.set_depth(depth)
    module.classifier.train()
    pixels = torch.randn(size, *module.spec.input_size)
    with Alive() as alive:
        # a tensor of its own, as it is in training
        loss = module.recipe.criterion_schedule(0)(
            module.classifier(pixels.contiguous(memory_format=torch.channels_last) * 1),
            torch.arange(size) % 3,
        )
    held: int = alive.num_bytes() - loss.nbytes
    return held


@pytest.mark.parametrize(
    "settings",
    [
        {"model__backbone": "test_resnet", "model__batch_norm": "frozen"},
        {"model__backbone": "test_resnet", "model__batch_norm": "train"},
        {
            "model__backbone": "test_resnet",
            "model__batch_norm": "frozen",
            "model__grad_checkpointing": True,
        },
        {"model__backbone": "test_vit", "data__image_size": 64},
        {
            "model__backbone": "test_vit",
            "data__image_size": 64,
            "model__grad_checkpointing": True,
        },
        {"model__backbone": "test_convnext", "data__image_size": 64},
    ],
    ids=["frozen", "train", "checkpointed", "vit", "checkpointed vit", "convnext"],
)
def test_real_networks_keep_what_was_measured(settings: dict[str, Any], animals: Path) -> None:
    module = small_training(animals, **settings).module
    buffers = sum(buffer.nbytes for buffer in module.classifier.buffers())
    for depth in (1, 3, len(module.classifier.groups)):
        found = meter_of(module).measure(depth)
        four, eleven = (kept(module, depth, size) for size in (4, 11))
        assert found.activation_bytes == pytest.approx((eleven - four) / 7, rel=1e-3), depth
        # statistics that a layer keeps for the backward pass are no new memory
        fixed = four - 4 * found.activation_bytes
        assert -16 <= found.fixed_bytes - fixed <= buffers, depth


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_less_is_kept_where_less_trains(backbone: str, animals: Path) -> None:
    training = small_training(animals, model__backbone=backbone, data__image_size=64)
    depths = range(1, len(training.module.classifier.groups) + 1)
    found = [measured(training, depth) for depth in depths]
    for name in ("activation_bytes", "gradient_bytes", "optimizer_bytes"):
        values = [getattr(step, name) for step in found]
        assert values == sorted(set(values)), name
    assert len({step.parameter_bytes for step in found}) == 1


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_checkpointing_keeps_less(backbone: str, animals: Path) -> None:
    settings = {"model__backbone": backbone, "model__batch_norm": "frozen", "data__image_size": 64}
    plain, less = (
        small_training(animals, **settings, model__grad_checkpointing=on) for on in (False, True)
    )
    depth = len(plain.module.classifier.groups)
    assert measured(less, depth).activation_bytes < 0.8 * measured(plain, depth).activation_bytes
    # where nothing behind them trains, there is nothing to compute again
    assert measured(less, 1).activation_bytes == measured(plain, 1).activation_bytes


@pytest.mark.parametrize(
    ("optimizer", "momentum", "numbers", "steps"),
    [("adamw", 0.9, 2, 1), ("sgd", 0.9, 1, 0), ("sgd", 0.0, 0, 0)],
    ids=["adamw", "momentum", "sgd"],
)
def test_parameters_gradients_and_optimizer_are_counted_to_the_byte(
    optimizer: str, momentum: float, numbers: int, steps: int, animals: Path
) -> None:
    training = small_training(animals, optim__name=optimizer, optim__momentum=momentum)
    classifier = training.module.classifier
    parameters = [p.numel() for p in classifier.parameters()]
    norms = [m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)]
    # mean and variance of each channel, and a counter of 8 bytes
    buffers = sum(2 * FLOAT * norm.num_features + INDEX for norm in norms)
    head = [3 * 96, 3]
    for depth, trained in ((1, head), (len(classifier.groups), parameters)):
        found = measured(training, depth)
        assert found.depth == depth
        assert found.parameter_bytes == FLOAT * sum(parameters) + buffers
        assert found.gradient_bytes == FLOAT * sum(trained)
        # adamw counts its steps for each tensor, in a float
        assert found.optimizer_bytes == FLOAT * (numbers * sum(trained) + steps * len(trained))
        assert found.compute_total_bytes(7) == (
            found.parameter_bytes
            + found.gradient_bytes
            + found.optimizer_bytes
            + found.fixed_bytes
            + 7 * found.activation_bytes
        )


def test_measuring_leaves_no_trace(animals: Path) -> None:
    training = small_training(animals, model__batch_norm="train", model__drop_rate=0.5)
    module = training.module
    module.classifier.set_depth(2)
    before = snapshot(module)
    flags = [part.training for part in module.modules()]
    trains = [parameter.requires_grad for parameter in module.parameters()]
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    meter = meter_of(module)
    for depth in (6, 1):
        meter.measure(depth)
    assert_same_bits(snapshot(module), before)
    assert [part.training for part in module.modules()] == flags
    assert [parameter.requires_grad for parameter in module.parameters()] == trains
    assert module.classifier.depth == 2
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]
    # and the copy did train: its statistics and weights have moved
    moved = snapshot(meter.classifier)
    assert not all(torch.equal(moved[n], t) for n, t in snapshot(module.classifier).items())


def slowly(logits: Tensor, labels: Tensor, *, seconds: float, seen: list[int]) -> Tensor:
    """Take so many seconds an image."""
    del labels
    seen.append(len(logits))
    time.sleep(seconds * len(logits))
    return logits.sum()


def test_times_are_those_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_MAX_STEP_SECONDS", 1.0)
    seen: list[int] = []
    module = module_of(Chain(), criterion=partial(slowly, seconds=0.002, seen=seen))
    found = meter_of(module, batch_size=16).measure(3)
    assert max(seen) == 16, "a batch that is quick enough is taken as it is"
    assert 0.002 <= found.eval_seconds_per_image < 0.01
    assert 0.002 <= found.train_seconds_per_image < 0.01


def test_of_a_slow_batch_a_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_MAX_STEP_SECONDS", 0.1)
    seen: list[int] = []
    module = module_of(Chain(), criterion=partial(slowly, seconds=0.01, seen=seen))
    found = meter_of(module, batch_size=1000).measure(3)
    assert max(seen) == 4
    assert 0.01 <= found.train_seconds_per_image < 0.1


FULL = (
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 1 GiB."),
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: 12 bytes"),
)


@pytest.mark.parametrize(("kind", "message"), FULL)
def test_a_batch_that_does_not_fit_is_timed_in_part(
    kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_MAX_STEP_SECONDS", 1.0)
    seen: list[int] = []

    def full(logits: Tensor, labels: Tensor) -> Tensor:
        if len(logits) > 8:
            raise kind(message)
        seen.append(len(logits))
        return total(logits, labels)

    found = meter_of(module_of(Chain(), criterion=full), batch_size=16).measure(3)
    assert max(seen) == 8
    assert math.isfinite(found.train_seconds_per_image)
    assert found.activation_bytes == FLOAT * (PIXELS + 50 + 20)


@pytest.mark.parametrize(("kind", "message"), [*FULL, (ValueError, "mine")])
def test_what_fails_for_a_few_images_is_raised(kind: type[Exception], message: str) -> None:
    def full(logits: Tensor, labels: Tensor) -> Tensor:
        raise kind(message)

    with pytest.raises(kind, match=message):
        meter_of(module_of(Chain(), criterion=full)).measure(1)


def test_the_images_are_those_of_training_normalised(animals: Path) -> None:
    training = small_training(animals)
    batch = training.datamodule.train_dataset.__getitems__([Draw(row, 0, 0) for row in range(3)])
    meter = StepProfiler(
        training.module, batch, batch_size=4, device=torch.device("cpu"), precision="32-true"
    )
    seen: list[Tensor] = []
    meter.classifier.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    meter.measure(1)
    four = next(images for images in seen if len(images) == 4)
    spec = training.module.spec
    for row in range(4):  # of three images, the first comes again
        pixels = batch["image"][row % 3].permute(2, 0, 1) / 255
        torch.testing.assert_close(four[row], normalize(pixels, list(spec.mean), list(spec.std)))


@pytest.mark.parametrize("depth", [1, 3])
def test_memory_alone_is_that_of_the_whole_measurement(depth: int) -> None:
    cost = meter_of(module_of(Chain())).measure(depth)
    memory = meter_of(module_of(Chain())).measure_memory(depth)
    for field in fields(memory):
        assert getattr(memory, field.name) == getattr(cost, field.name)
    assert memory.compute_total_bytes(7) == cost.compute_total_bytes(7) > 0
