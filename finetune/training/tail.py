"""The last layers of a network, trained on kept maps, and kept where that beats the head alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import TrainingError
from finetune.machine import explain_out_of_memory, is_out_of_memory
from finetune.models.classifier import ImageClassifier
from finetune.models.cut import Halves, cut_before
from finetune.probe.tail import KeptMaps, TailTraining, tail_logits, trained_epochs
from finetune.training.meeting import Meeting, stop_together
from finetune.types import Reporter

MakeOptimizer = Callable[[ImageClassifier], Optimizer]


@dataclass(frozen=True, slots=True)
class TailPlan:
    """How a probe trains more than the head.

    Attributes:
        depth: Layer groups that train, the head included; 2 or more.
        training: Steps and rates.
        make_optimizer: Of the classifier; what is frozen has no gradients in it.
        monitor: Metric that tells which epoch is best, "loss" or one that grows.
        num_bytes: Of all maps.
    """

    depth: int
    training: TailTraining
    make_optimizer: MakeOptimizer
    monitor: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class KeptSplits:
    """What is kept of the images, on rank 0.

    Attributes:
        train: Maps of the training images, (N, D) for each view.
        val: Maps of the validation images, (M, D).
        shape: Of the maps of an image.
        labels: Of the training images, shape (N,).
        weights: Of each training image in the mean loss, shape (N,).
    """

    train: Sequence[KeptMaps]
    val: KeptMaps
    shape: torch.Size
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tail:
    """What the last layers came to.

    Attributes:
        epoch: Passes behind the best of them.
        train_loss: Weighted mean loss of the training images in the last of these.
        probabilities: Of the validation images, shape (M, K).
    """

    epoch: int
    train_loss: float
    probabilities: Tensor


def cut_classifier(classifier: ImageClassifier, depth: int) -> Halves:
    """Return a network cut before its first ``depth`` layer groups, in the mode that it is in."""
    names = [name for group in classifier.groups[:depth] for name in group.parameters]
    halves = cut_before(classifier.network, names)
    assert halves is not None, "looked for by who plans"
    return halves


def fit_tail(
    classifier: ImageClassifier,
    plan: TailPlan,
    kept: KeptSplits,
    measure: Callable[[Tensor], Mapping[str, float]],
    *,
    baseline: float,
    device: torch.device,
    met: Meeting | None,
    reporter: Reporter,
) -> Tail | None:
    """Train the last layers on rank 0, and leave them as after their best epoch.

    The others call ``wait_for_tail`` meanwhile. BatchNorm keeps its statistics.

    Args:
        classifier: In eval mode, on the device; its head is fitted.
        plan: Steps and rates.
        kept: What it learns from.
        measure: Class probabilities of the validation images (M, K) to metrics.
        baseline: Score of the head alone.
        device: Of this rank.
        met: The ranks; None for one alone.
        reporter: Told of the progress.

    Returns:
        What they came to; None where no epoch beat the head alone, and they are as they were.

    Raises:
        StopRequest: A rank was asked to stop.
        TrainingError: The memory does not suffice.
    """
    reporter.start("training the last layers", plan.training.epochs)
    try:
        with _only(classifier, plan.depth) as trained:
            return _fit_tail(
                classifier,
                plan,
                kept,
                measure,
                trained,
                baseline=baseline,
                device=device,
                met=met,
                reporter=reporter,
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{explain_out_of_memory(error)} Training {plan.depth} layer groups on kept maps does "
            f"not fit. Take a smaller --batch-size, or leave probe.depth out."
        ) from None
    finally:
        reporter.finish()


def _fit_tail(
    classifier: ImageClassifier,
    plan: TailPlan,
    kept: KeptSplits,
    measure: Callable[[Tensor], Mapping[str, float]],
    trained: Sequence[nn.Parameter],
    *,
    baseline: float,
    device: torch.device,
    met: Meeting | None,
    reporter: Reporter,
) -> Tail | None:
    quiet = cut_classifier(classifier, plan.depth).second
    epochs = trained_epochs(
        cut_classifier(classifier.train(), plan.depth).second,
        plan.make_optimizer(classifier),
        kept.train,
        kept.labels,
        kept.weights,
        map_shape=kept.shape,
        how=plan.training,
        device=device,
    )
    best, best_value = None, _growing(plan.monitor, baseline)
    weights = [parameter.detach().clone() for parameter in trained]
    for epoch, train_loss in enumerate(epochs, start=1):
        classifier.eval()
        logits = tail_logits(
            quiet,
            kept.val,
            map_shape=kept.shape,
            batch_size=plan.training.batch_size,
            precision=plan.training.precision,
            device=device,
        )
        classifier.train()
        probabilities = logits.softmax(dim=1)
        value = _growing(plan.monitor, measure(probabilities)[plan.monitor])
        if value > best_value:
            best, best_value = Tail(epoch, train_loss, probabilities), value
            weights = [parameter.detach().clone() for parameter in trained]
        reporter.advance()
        if met is not None:
            stop_together()
    with torch.no_grad():
        for parameter, weight in zip(trained, weights, strict=True):
            parameter.copy_(weight)
    return best


def wait_for_tail(plan: TailPlan) -> None:
    """Stand by while rank 0 trains the last layers.

    Raises:
        StopRequest: A rank was asked to stop.
    """
    for _ in range(plan.training.epochs):
        stop_together()


def _growing(monitor: str, value: float) -> float:
    return -value if monitor == "loss" else value


@contextmanager
def _only(classifier: ImageClassifier, depth: int) -> Iterator[list[nn.Parameter]]:
    """Let some layer groups alone train in the block, their BatchNorm frozen; yield what trains."""
    before = classifier.depth, classifier.batch_norm
    classifier.batch_norm = "frozen"
    classifier.set_depth(depth)
    try:
        yield [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    finally:
        classifier.batch_norm = before[1]
        classifier.set_depth(before[0])
        classifier.eval()
