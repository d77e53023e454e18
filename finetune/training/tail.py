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
from finetune.models.cut import cut_last_groups
from finetune.models.mode import in_eval_mode
from finetune.probe.answers import MapForm
from finetune.probe.tail import KeptMaps, TailTraining, tail_logits, trained_passes
from finetune.training.meeting import Meeting
from finetune.types import Reporter

MakeOptimizer = Callable[[ImageClassifier], Optimizer]


@dataclass(frozen=True, slots=True)
class TailPlan:
    """How a probe trains more than the head.

    Attributes:
        depth: Layer groups that train, the head included; 2 or more.
        training: Steps and rates.
        make_optimizer: Of the classifier; what is frozen has no gradients in it.
        monitor: Metric that tells which pass is best, "loss" or one that grows.
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
        form: Of the maps.
        labels: Of the training images, shape (N,).
        weights: Of each training image in the mean loss, shape (N,).
    """

    train: Sequence[KeptMaps]
    val: KeptMaps
    form: MapForm
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tail:
    """What the last layers came to.

    Attributes:
        passes: Behind them when they were best.
        train_loss: Weighted mean loss of the training images in the last of these passes.
        probabilities: Of the validation images, shape (M, K).
    """

    passes: int
    train_loss: float
    probabilities: Tensor


def fit_tail(
    classifier: ImageClassifier,
    quiet: nn.Module,
    plan: TailPlan,
    kept: KeptSplits,
    measure: Callable[[Tensor], Mapping[str, float]],
    *,
    baseline: float,
    device: torch.device,
    met: Meeting | None,
    reporter: Reporter,
) -> Tail | None:
    """Train the last layers on rank 0, and leave them as after their best pass.

    The others wait to be handed what comes of it. BatchNorm keeps its statistics.

    Args:
        classifier: In eval mode, on the device; its head is fitted.
        quiet: Its last layers, as they compute in eval mode.
        plan: Steps and rates.
        kept: What it learns from.
        measure: Class probabilities of the validation images (M, K) to metrics.
        baseline: Score of the head alone.
        device: Of this rank.
        met: The ranks; None for one alone.
        reporter: Told of the progress.

    Returns:
        What they came to; None where no pass beat the head alone, and they are as they were.

    Raises:
        StopRequest: A rank was asked to stop.
        TrainingError: The memory does not suffice.
    """
    how = plan.training
    reporter.start("training the last layers", how.passes)
    best, best_value = None, _growing(plan.monitor, baseline)
    with _out_of_memory_explained(plan), _only(classifier, plan.depth) as trained:
        halves = cut_last_groups(classifier.train().network, plan.depth)
        assert halves is not None, "looked for by who plans"
        weights = [parameter.detach().clone() for parameter in trained]
        passes = trained_passes(
            halves.second,
            plan.make_optimizer(classifier),
            kept.train,
            kept.labels,
            kept.weights,
            form=kept.form,
            how=how,
            device=device,
            after_step=(lambda: None) if met is None else met.look_at_waiting,
        )
        for number, train_loss in enumerate(passes, start=1):
            with in_eval_mode(classifier):
                logits = tail_logits(
                    quiet,
                    kept.val,
                    form=kept.form,
                    batch_size=how.at_once,
                    precision=how.precision,
                    device=device,
                )
            probabilities = logits.softmax(dim=1)
            value = _growing(plan.monitor, measure(probabilities)[plan.monitor])
            if value > best_value:
                best, best_value = Tail(number, train_loss, probabilities), value
                weights = [parameter.detach().clone() for parameter in trained]
            reporter.advance()
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
    reporter.finish()
    return best


def _growing(monitor: str, value: float) -> float:
    return -value if monitor == "loss" else value


@contextmanager
def _out_of_memory_explained(plan: TailPlan) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{explain_out_of_memory(error)} Training {plan.depth} layer groups on kept maps, "
            f"{plan.training.at_once} images at once, does not fit. Take a larger "
            f"trainer.accumulate, or leave probe.depth out."
        ) from None


@contextmanager
def _only(classifier: ImageClassifier, depth: int) -> Iterator[list[nn.Parameter]]:
    """Let some layer groups alone train in the block, their BatchNorm frozen; yield what trains."""
    before = classifier.depth, classifier.batch_norm
    with in_eval_mode(classifier):
        classifier.batch_norm = "frozen"
        classifier.set_depth(depth)
        try:
            yield [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        finally:
            classifier.batch_norm = before[1]
            classifier.set_depth(before[0])
