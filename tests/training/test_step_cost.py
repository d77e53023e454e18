"""Step cost compared with counts by hand and with the memory that torch really keeps."""

import gc
import math
import random
import time
import weakref
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
from finetune.training.learning_recipe import Recipe
from finetune.training.module import ClassificationModule
from finetune.training.optimization.optimizers import create_optimizer
from finetune.training.optimization.param_groups import build_param_groups
from finetune.training.step_cost import StepCost, StepProfiler
from finetune.types import Draw, PreprocessSpec
from tests.support.networks import copy_state
from tests.support.runs import assert_same_bits, create_small_training

PIXELS = 3 * 8 * 8
FLOAT, HALF, INDEX = 4, 2, 8  # bytes per value


class Chain(nn.Module):
    """Linear layers: autograd saves the input of each that trains or follows one that does."""

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
    """A convolution and a max pool, for which autograd saves the indices of the maxima."""

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


def sum_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss for which autograd saves nothing."""
    del labels
    return logits.sum()


def build_module(
    network: nn.Module, *, criterion: Criterion = sum_logits, optimizer: str = "adamw"
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


def make_batch(size: int, *, count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    rows = torch.arange(count)
    return Batch(image=image, label=rows % 3, index=rows)


def build_profiler(
    module: ClassificationModule,
    *,
    batch_size: int = 8,
    precision: str = "32-true",
    max_step_seconds: float = 1e-9,
) -> StepProfiler:
    """Return a profiler that times as few images as possible, since most tests ignore the time."""
    return StepProfiler(
        module,
        make_batch(module.spec.input_size[-1]),
        batch_size=batch_size,
        device=torch.device("cpu"),
        precision=precision,
        max_step_seconds=max_step_seconds,
    )


def measure(training: Training, depth: int, **settings: Any) -> StepCost:
    return build_profiler(training.module, **settings).measure(depth)


@pytest.mark.parametrize(
    ("depth", "numbers"), [(3, PIXELS + 50 + 20), (2, 50 + 20), (1, 20)], ids=lambda value: value
)
def test_step_profiler_chain_saves_inputs_of_trainable_layers(depth: int, numbers: int) -> None:
    cost = build_profiler(build_module(Chain())).measure(depth)
    assert cost.activation_bytes == FLOAT * numbers
    assert cost.fixed_bytes == 0


def test_step_profiler_convolution_saves_input_and_pool_saves_indices() -> None:
    cost = build_profiler(build_module(Convolutions())).measure(2)
    images, before, after = 3 * 8 * 8, 4 * 8 * 8, 4 * 4 * 4
    assert cost.activation_bytes == FLOAT * (images + before + after) + INDEX * after
    assert cost.fixed_bytes == 0


def test_step_profiler_bf16_halves_activations_and_adds_weight_copies() -> None:
    cost = build_profiler(build_module(Chain()), precision="bf16-mixed").measure(3)
    assert cost.activation_bytes == HALF * (PIXELS + 50 + 20)
    # the first layer's weights are not saved, since nothing before it trains
    assert cost.fixed_bytes == HALF * (50 * 20 + 20 * 3)


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that tracks the storages of operations' outputs that are still in use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        input_pointers = {
            a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if torch.is_tensor(a)
        }
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in input_pointers:
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._storages[storage._cdata] = (reference, storage.nbytes())
        return result

    def count_bytes(self) -> int:
        expired = [c for c, (ref, _) in self._storages.items() if ref.expired()]  # type: ignore[no-untyped-call]
        for storage in expired:
            del self._storages[storage]
        return sum(size for _, size in self._storages.values())


def measure_live_bytes(module: ClassificationModule, depth: int, size: int) -> int:
    """Measure the memory that a forward pass leaves in use, without the loss itself."""
    module.classifier.set_depth(depth)
    module.classifier.train()
    pixels = torch.randn(size, *module.spec.input_size)
    with LiveStorages() as storages:
        # a new tensor, as in training
        loss = module.recipe.criterion_schedule(0)(
            module.classifier(pixels.contiguous(memory_format=torch.channels_last) * 1),
            torch.arange(size) % 3,
        )
    num_bytes: int = storages.count_bytes() - loss.nbytes
    return num_bytes


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
def test_step_profiler_real_networks_match_live_bytes(
    settings: dict[str, Any], animals: Path
) -> None:
    module = create_small_training(animals, **settings).module
    buffers = sum(buffer.nbytes for buffer in module.classifier.buffers())
    for depth in (1, 3, len(module.classifier.groups)):
        cost = build_profiler(module).measure(depth)
        four, eleven = (measure_live_bytes(module, depth, size) for size in (4, 11))
        assert cost.activation_bytes == pytest.approx((eleven - four) / 7, rel=1e-3), depth
        # statistics that a layer saves for the backward pass are not new memory
        fixed = four - 4 * cost.activation_bytes
        assert -16 <= cost.fixed_bytes - fixed <= buffers, depth


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_step_profiler_memory_grows_with_depth(backbone: str, animals: Path) -> None:
    training = create_small_training(animals, model__backbone=backbone, data__image_size=64)
    depths = range(1, len(training.module.classifier.groups) + 1)
    costs = [measure(training, depth) for depth in depths]
    for name in ("activation_bytes", "gradient_bytes", "optimizer_bytes"):
        values = [getattr(step, name) for step in costs]
        assert values == sorted(set(values)), name
    assert len({step.parameter_bytes for step in costs}) == 1


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_step_profiler_grad_checkpointing_reduces_activations(backbone: str, animals: Path) -> None:
    settings = {"model__backbone": backbone, "model__batch_norm": "frozen", "data__image_size": 64}
    plain, checkpointed = (
        create_small_training(animals, **settings, model__grad_checkpointing=on)
        for on in (False, True)
    )
    depth = len(plain.module.classifier.groups)
    assert (
        measure(checkpointed, depth).activation_bytes < 0.8 * measure(plain, depth).activation_bytes
    )
    # if nothing below trains, nothing is recomputed
    assert measure(checkpointed, 1).activation_bytes == measure(plain, 1).activation_bytes


@pytest.mark.parametrize(
    ("optimizer", "momentum", "numbers", "steps"),
    [("adamw", 0.9, 2, 1), ("sgd", 0.9, 1, 0), ("sgd", 0.0, 0, 0)],
    ids=["adamw", "momentum", "sgd"],
)
def test_step_profiler_counts_parameters_gradients_and_optimizer_exactly(
    optimizer: str, momentum: float, numbers: int, steps: int, animals: Path
) -> None:
    training = create_small_training(animals, optim__name=optimizer, optim__momentum=momentum)
    classifier = training.module.classifier
    parameters = [p.numel() for p in classifier.parameters()]
    norms = [m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)]
    # mean and variance of each channel, and a counter of 8 bytes
    buffers = sum(2 * FLOAT * norm.num_features + INDEX for norm in norms)
    head = [3 * 96, 3]
    for depth, trained in ((1, head), (len(classifier.groups), parameters)):
        cost = measure(training, depth)
        assert cost.depth == depth
        assert cost.parameter_bytes == FLOAT * sum(parameters) + buffers
        assert cost.gradient_bytes == FLOAT * sum(trained)
        # adamw counts its steps for each tensor, in a float
        assert cost.optimizer_bytes == FLOAT * (numbers * sum(trained) + steps * len(trained))
        assert cost.compute_total_bytes(7) == (
            cost.parameter_bytes
            + cost.gradient_bytes
            + cost.optimizer_bytes
            + cost.fixed_bytes
            + 7 * cost.activation_bytes
        )


def test_step_profiler_leaves_module_and_generators_unchanged(animals: Path) -> None:
    training = create_small_training(animals, model__batch_norm="train", model__drop_rate=0.5)
    module = training.module
    module.classifier.set_depth(2)
    before = copy_state(module)
    flags = [layer.training for layer in module.modules()]
    requires_grad = [parameter.requires_grad for parameter in module.parameters()]
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    profiler = build_profiler(module)
    for depth in (6, 1):
        profiler.measure(depth)
    assert_same_bits(copy_state(module), before)
    assert [layer.training for layer in module.modules()] == flags
    assert [parameter.requires_grad for parameter in module.parameters()] == requires_grad
    assert module.classifier.depth == 2
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]
    # the copy did train: its statistics and weights have changed
    after = copy_state(profiler.classifier)
    assert not all(torch.equal(after[n], t) for n, t in copy_state(module.classifier).items())


@pytest.mark.parametrize("method", ["measure", "measure_memory", "measure_layers"])
def test_step_profiler_frees_its_copy_of_the_network(method: str, animals: Path) -> None:
    training = create_small_training(animals)
    batch = training.datamodule.train_dataset.__getitems__([Draw(row, 0, 0) for row in range(4)])
    profiler = StepProfiler(
        training.module, batch, batch_size=4, device=torch.device("cpu"), precision="32-true"
    )
    getattr(profiler, method)(3)
    copies = [weakref.ref(parameter) for parameter in profiler.classifier.parameters()]
    del profiler
    gc.collect()
    assert not any(copy() is not None for copy in copies)


def sleep_per_image(logits: Tensor, labels: Tensor, *, seconds: float, sizes: list[int]) -> Tensor:
    """Sleep for a number of seconds per image, and record the batch size."""
    del labels
    sizes.append(len(logits))
    time.sleep(seconds * len(logits))
    return logits.sum()


def test_step_profiler_returns_seconds_per_image() -> None:
    sizes: list[int] = []
    module = build_module(Chain(), criterion=partial(sleep_per_image, seconds=0.002, sizes=sizes))
    cost = build_profiler(module, batch_size=16, max_step_seconds=1.0).measure(3)
    assert max(sizes) == 16, "a fast batch is timed completely"
    assert 0.002 <= cost.eval_seconds_per_image < 0.01
    assert 0.002 <= cost.train_seconds_per_image < 0.01


def test_step_profiler_slow_batch_is_timed_with_fewer_images() -> None:
    sizes: list[int] = []
    module = build_module(Chain(), criterion=partial(sleep_per_image, seconds=0.01, sizes=sizes))
    cost = build_profiler(module, batch_size=1000, max_step_seconds=0.1).measure(3)
    assert max(sizes) == 4
    assert 0.01 <= cost.train_seconds_per_image < 0.1


OUT_OF_MEMORY_ERRORS = (
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 1 GiB."),
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: 12 bytes"),
)


@pytest.mark.parametrize(("kind", "message"), OUT_OF_MEMORY_ERRORS)
def test_step_profiler_out_of_memory_retries_with_fewer_images(
    kind: type[Exception], message: str
) -> None:
    sizes: list[int] = []

    def run_out_of_memory(logits: Tensor, labels: Tensor) -> Tensor:
        if len(logits) > 8:
            raise kind(message)
        sizes.append(len(logits))
        return sum_logits(logits, labels)

    cost = build_profiler(
        build_module(Chain(), criterion=run_out_of_memory), batch_size=16, max_step_seconds=1.0
    ).measure(3)
    assert max(sizes) == 8
    assert math.isfinite(cost.train_seconds_per_image)
    assert cost.activation_bytes == FLOAT * (PIXELS + 50 + 20)


@pytest.mark.parametrize(("kind", "message"), [*OUT_OF_MEMORY_ERRORS, (ValueError, "mine")])
def test_step_profiler_error_with_few_images_is_raised(kind: type[Exception], message: str) -> None:
    def raise_error(logits: Tensor, labels: Tensor) -> Tensor:
        raise kind(message)

    with pytest.raises(kind, match=message):
        build_profiler(build_module(Chain(), criterion=raise_error)).measure(1)


def test_step_profiler_uses_normalised_training_images(animals: Path) -> None:
    training = create_small_training(animals)
    batch = training.datamodule.train_dataset.__getitems__([Draw(row, 0, 0) for row in range(3)])
    profiler = StepProfiler(
        training.module, batch, batch_size=4, device=torch.device("cpu"), precision="32-true"
    )
    inputs: list[Tensor] = []
    profiler.classifier.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    profiler.measure(1)
    four = next(images for images in inputs if len(images) == 4)
    spec = training.module.spec
    for row in range(4):  # of three images, the first is repeated
        pixels = batch["image"][row % 3].permute(2, 0, 1) / 255
        torch.testing.assert_close(four[row], normalize(pixels, list(spec.mean), list(spec.std)))


@pytest.mark.parametrize("depth", [1, 3])
def test_measure_memory_equals_memory_of_measure(depth: int) -> None:
    cost = build_profiler(build_module(Chain())).measure(depth)
    memory = build_profiler(build_module(Chain())).measure_memory(depth)
    for field in fields(memory):
        assert getattr(memory, field.name) == getattr(cost, field.name)
    assert memory.compute_total_bytes(7) == cost.compute_total_bytes(7) > 0
