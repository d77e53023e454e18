"""Heads that are trained on frozen features with the components of each choice."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config.optimizer_defaults import HEAD_LR, MOMENTUM, WEIGHT_DECAY
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.images.source import FileSource
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.evaluation.calibration import fit_temperature
from finetune.lookup import has_parameter
from finetune.losses import LOSSES
from finetune.models.backbone import create_network
from finetune.models.classifier import normalise
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.models.mlp_head import HeadInit, MlpHead, MlpSettings, initialise_head
from finetune.training.optimization.optimizers import create_optimizer
from finetune.training.optimization.weight_constraints import (
    UnitLimit,
    compute_l1_penalty,
    constrain_after_step,
)
from finetune.training.schedules.factor_scheduler import FactorScheduler
from finetune.training.schedules.learning_rate import (
    LR_SCHEDULES,
    compute_lr_factor,
    one_cycle_momentum,
)
from finetune.training.schedules.plateau import PlateauFactor, PlateauSettings

NUM_VAL_IMAGES = 15
BATCH_SIZE = 32
SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Choice:
    """What a row trains with, where it differs from the first row."""

    optimizer: str = "adamw"
    momentum: float | None = None
    nesterov: bool = True
    weight_decay: float | None = None
    schedule: str = "cosine"
    loss: str = "cross_entropy"
    init: HeadInit = "zero"
    mlp: MlpSettings | None = None
    l1: float = 0.0
    max_norm: float | None = None


@dataclass(frozen=True)
class Images:
    """Features (N, D) and labels (N,) of the training, validation and test images."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass
class Result:
    """Accuracy and calibrated log loss of each seed, and CPU seconds of all."""

    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


GROUPS: Mapping[str, Mapping[str, Choice]] = {
    "optimizer": {
        "adamw": Choice(),
        "adam": Choice("adam"),
        "sgd": Choice("sgd"),
        "sgd, heavy ball": Choice("sgd", nesterov=False),
        "sgd, plain": Choice("sgd", momentum=0.0),
        "sgd, weight decay 0.05": Choice("sgd", weight_decay=0.05),
        "rmsprop": Choice("rmsprop"),
        "adadelta": Choice("adadelta"),
        "adagrad": Choice("adagrad"),
    },
    "schedule": {name: Choice(schedule=name) for name in LR_SCHEDULES},
    "loss": {
        name: Choice(loss=name)
        for name in ("cross_entropy", "focal", "ldam", "hinge", "squared_hinge", "mse")
    },
    "head": {
        "linear, zero": Choice(),
        "linear, xavier": Choice(init="xavier"),
        "linear, he": Choice(init="he"),
        "mlp, 512": Choice(mlp=MlpSettings()),
        "mlp, 512, dropout 0.5": Choice(mlp=MlpSettings(drop_rate=0.5)),
        "mlp, 256 and 128": Choice(mlp=MlpSettings((256, 128))),
    },
    "penalty of the head": {
        "L2 0.05 (default)": Choice(),
        "none": Choice(weight_decay=0.0),
        "L2 1": Choice(weight_decay=1.0),
        "L1 0.0001": Choice(l1=1e-4),
        "L1 0.001": Choice(l1=1e-3),
        "max-norm 1": Choice(max_norm=1.0),
        "max-norm 0.3": Choice(max_norm=0.3),
    },
}


class Classifier(nn.Module):
    """Head alone, with what ``initialise_head`` needs of a network."""

    def __init__(self, width: int, num_classes: int, choice: Choice) -> None:
        super().__init__()
        self.fc: nn.Module = (
            nn.Linear(width, num_classes)
            if choice.mlp is None
            else MlpHead(width, num_classes, choice.mlp)
        )

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.fc

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits (B, K) of features (B, D)."""
        logits: Tensor = self.fc(features)
        return logits


def compute_features(options: Namespace) -> tuple[Tensor, Tensor]:
    """Return the features (N, D) and labels (N,) of the images of a folder of class folders."""
    folders = sorted(path for path in options.data.iterdir() if path.is_dir())
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    network = create_network(
        options.backbone, num_classes=2, weights=options.weights, image_size=options.image_size
    )
    spec, head = network.spec, find_linear_head(network.module)
    assert head is not None
    network.module.eval()
    dataset = ImageDataset(
        FileSource([file for file, _ in files]), [label for _, label in files], EvalTransform(spec)
    )
    features = []
    with torch.inference_mode(), capture_head_inputs(head) as inputs:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            network.module(normalise(batch["image"], mean=spec.mean, std=spec.std))
            features.append(inputs.pop().clone())
    return torch.cat(features).clone(), torch.tensor([label for _, label in files])


def draw_images(features: Tensor, labels: Tensor, *, num_train: int, seed: int) -> Images:
    """Return equally many training and validation images of each class, and all others."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels.tolist())):
        order = random.permutation(np.flatnonzero(labels.numpy() == label)).tolist()
        rows["train"] += order[:num_train]
        rows["val"] += order[num_train : num_train + NUM_VAL_IMAGES]
        rows["test"] += order[num_train + NUM_VAL_IMAGES :]
    return Images(**{name: (features[chosen], labels[chosen]) for name, chosen in rows.items()})


def build_optimizer(classifier: Classifier, choice: Choice) -> torch.optim.Optimizer:
    """Return the optimizer of a head, with decay of its matrices alone."""
    decay = choice.weight_decay
    decay = WEIGHT_DECAY[choice.optimizer].value if decay is None else decay
    matrices = [p for p in classifier.parameters() if p.ndim > 1]
    vectors = [p for p in classifier.parameters() if p.ndim < 2]
    lr = HEAD_LR[choice.optimizer]
    momentum = choice.momentum
    momentum = MOMENTUM.get(choice.optimizer, 0.0) if momentum is None else momentum
    optimizer = create_optimizer(
        choice.optimizer,
        [
            {"params": matrices, "lr": lr, "weight_decay": decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ],
        momentum=momentum,
        nesterov=choice.nesterov and momentum > 0,
    )
    if choice.max_norm is not None:
        constrain_after_step(optimizer, [UnitLimit(one, choice.max_norm) for one in matrices])
    return optimizer


def build_scheduler(
    optimizer: torch.optim.Optimizer, choice: Choice, *, num_epochs: int, num_steps: int
) -> FactorScheduler:
    """Return the schedule, with the warm-up that ``fit`` takes without a probe."""
    derived = {"num_epochs": num_epochs, "num_steps": num_steps, "final_factor": 0.01}
    function = LR_SCHEDULES[choice.schedule]
    params = {name: value for name, value in derived.items() if has_parameter(function, name)}
    is_cycle = choice.schedule == "one_cycle"
    plateau = PlateauFactor(PlateauSettings("val/loss")) if choice.schedule == "plateau" else None
    return FactorScheduler(
        optimizer,
        partial(
            compute_lr_factor,
            schedule=partial(function, **params),
            num_steps=num_steps,
            warmup_steps=0 if is_cycle else round(0.05 * num_steps),
        ),
        plateau=plateau,
        momentum_lambda=(
            (lambda step: one_cycle_momentum(min(1.0, step / num_steps), num_steps=num_steps))
            if is_cycle
            else None
        ),
    )


def train(images: Images, choice: Choice, *, num_epochs: int, seed: int) -> Classifier:
    """Return a head that is trained with the components of a choice."""
    features, labels = images.train
    num_classes = int(labels.max()) + 1
    torch.manual_seed(seed)
    classifier = Classifier(features.shape[1], num_classes, choice)
    initialise_head(classifier, choice.init, seed=seed)
    optimizer = build_optimizer(classifier, choice)
    num_batches = len(labels) // BATCH_SIZE
    scheduler = build_scheduler(
        optimizer, choice, num_epochs=num_epochs, num_steps=num_epochs * num_batches
    )
    criterion = _build_criterion(choice, labels)
    names = [name for name, p in classifier.named_parameters() if p.ndim > 1]
    for _ in range(num_epochs):
        classifier.train()
        for rows in _draw_batches(len(labels), num_batches):
            optimizer.zero_grad()
            loss = criterion(classifier(features[rows]), labels[rows])
            if choice.l1:
                loss = loss + compute_l1_penalty(classifier, names, factor=choice.l1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
        classifier.eval()
        if choice.schedule == "plateau":
            with torch.no_grad():
                logits = classifier(images.val[0])
                scheduler.update_plateau(float(LOSSES["cross_entropy"](logits, images.val[1])))
    return classifier


def _draw_batches(num_images: int, num_batches: int) -> Iterator[Tensor]:
    order = torch.randperm(num_images)
    yield from order[: num_batches * BATCH_SIZE].view(num_batches, BATCH_SIZE)


def _build_criterion(choice: Choice, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    loss = LOSSES[choice.loss]
    derived = {"label_smoothing": 0.1, "class_counts_K": torch.bincount(labels).float()}
    params = {name: value for name, value in derived.items() if has_parameter(loss, name)}
    return partial(loss, **params)


def measure(images: Sequence[Images], choice: Choice, *, num_epochs: int) -> Result:
    """Return the metrics of a choice on the test images of each seed."""
    result = Result()
    start = time.process_time()
    for seed, drawn in enumerate(images):
        classifier = train(drawn, choice, num_epochs=num_epochs, seed=seed)
        with torch.no_grad():
            val, test = classifier(drawn.val[0]), classifier(drawn.test[0])
        temperature = fit_temperature(val.double(), drawn.val[1])
        log_p = (test.double() / temperature).log_softmax(dim=1)
        result.accuracies.append(float((log_p.argmax(dim=1) == drawn.test[1]).double().mean()))
        result.losses.append(float(nn.functional.nll_loss(log_p, drawn.test[1])))
    result.seconds = time.process_time() - start
    return result


def print_group(name: str, results: Mapping[str, Result]) -> None:
    """Print the table of a group."""
    print(f"\n| {name} | accuracy | difference | log loss | CPU s |\n|---|---|---|---|---|")
    first = np.array(next(iter(results.values())).accuracies)
    for label, result in results.items():
        differences = 100 * (np.array(result.accuracies) - first)
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        difference = f"{differences.mean():+.1f} ± {error:.1f}"
        accuracy, loss = np.mean(result.accuracies), np.mean(result.losses)
        print(
            f"| {label} | {accuracy:.1%} | {difference} | {loss:.3f} | {result.seconds:.1f} |",
            flush=True,
        )
