"""The last layers of a network, trained on kept maps, and kept where that beats the head alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.distributed.rendezvous import Meeting
from finetune.errors import TrainingError
from finetune.models.classifier import ImageClassifier
from finetune.models.eval_mode import in_eval_mode
from finetune.models.graph_split import cut_last_groups
from finetune.probe.activation_training import MapRows, TailTraining, tail_logits, trained_passes
from finetune.probe.extractor import Answers, MapForm
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
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
class KeptMaps:
    """What the last layers learn from, on rank 0.

    Attributes:
        answers: Who gave the maps; its second half is the last layers in eval mode.
        form: Of the maps.
        train: Those of the training images, (N, D) for each view.
        val: Those of the validation images, (M, D).
        labels: Of the training images, shape (N,).
        weights: Of each training image in the mean loss, shape (N,).
        offset: Added to the logits in training alone, shape (K,); None adds nothing.
    """

    answers: Answers
    form: MapForm | None
    train: Sequence[MapRows]
    val: MapRows
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    offset: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe came to.

    Attributes:
        passes: Over kept maps that are behind it; 0 is the head alone.
        train_loss: Weighted mean loss of the training images, in the last of these passes.
        probabilities: Of the validation images, shape (M, K).
    """

    passes: int
    train_loss: float
    probabilities: Tensor


def fit_tail(
    classifier: ImageClassifier,
    plan: TailPlan,
    kept: KeptMaps,
    measure: Callable[[Tensor], Mapping[str, float]],
    *,
    alone: Outcome,
    device: torch.device,
    met: Meeting | None,
    reporter: Reporter,
) -> Outcome:
    """Train the last layers on rank 0, and leave them as after their best pass.

    The others wait to be handed what comes of it. BatchNorm keeps its statistics.

    Args:
        classifier: In eval mode, on the device; its head is fitted.
        plan: Steps and rates.
        kept: What it learns from.
        measure: Class probabilities of the validation images (M, K) to metrics.
        alone: What the head alone came to.
        device: Of this rank.
        met: The ranks; None for one alone.
        reporter: Told of the progress.

    Returns:
        What they came to; ``alone`` where no pass beat that, and they are as they were.

    Raises:
        StopRequest: A rank was asked to stop.
        TrainingError: The memory does not suffice.
    """
    how = plan.training
    reporter.start("training the last layers", how.passes)
    best, best_score = alone, _score(measure(alone.probabilities), plan.monitor)
    assert kept.form is not None, "asked about maps"
    assert kept.answers.halves is not None, "asked about maps"
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
            offset=kept.offset,
            form=kept.form,
            how=how,
            device=device,
            after_step=(lambda: None) if met is None else met.look_at_waiting,
        )
        for number, train_loss in enumerate(passes, start=1):
            with in_eval_mode(classifier):
                logits = tail_logits(
                    kept.answers.halves.second,
                    kept.val,
                    form=kept.form,
                    batch_size=how.at_once,
                    precision=how.precision,
                    device=device,
                )
            found = Outcome(number, train_loss, logits.softmax(dim=1))
            score = _score(measure(found.probabilities), plan.monitor)
            if score > best_score:
                best, best_score = found, score
                weights = [parameter.detach().clone() for parameter in trained]
            reporter.advance()
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
    reporter.finish()
    return best


def _score(metrics: Mapping[str, float], monitor: str) -> float:
    """Return the metric that decides, so that more is better."""
    return -metrics[monitor] if monitor == "loss" else metrics[monitor]


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
