"""The last layers of a network, trained on kept maps, and kept where that beats the head alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import TrainingError
from finetune.models.classifier import ImageClassifier
from finetune.models.eval_mode import eval_mode
from finetune.models.graph_split import split_last_groups
from finetune.probe.activation_training import (
    ActivationArray,
    LastStageSettings,
    compute_last_stage_logits,
    iter_training_passes,
)
from finetune.probe.extractor import ActivationLayout, FeatureExtractor
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
from finetune.types import Reporter

OptimizerFactory = Callable[[ImageClassifier], Optimizer]


@dataclass(frozen=True, slots=True)
class LastStagePlan:
    """How a probe trains more than the head.

    Attributes:
        depth: Layer groups that train, the head included; 2 or more.
        settings: Steps and rates.
        make_optimizer: Of the classifier; what is frozen has no gradients in it.
        monitor: Metric that tells which pass is best, "loss" or one that grows.
        num_bytes: Of all maps.
    """

    depth: int
    settings: LastStageSettings
    make_optimizer: OptimizerFactory
    monitor: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CachedActivations:
    """What the last layers learn from, on rank 0.

    Attributes:
        extractor: Who gave the maps; its second half is the last layers in eval mode.
        layout: Of the maps.
        train: Those of the training images, (N, D) for each view.
        val: Those of the validation images, (M, D).
        labels: Of the training images, shape (N,).
        weights: Of each training image in the mean loss, shape (N,).
        logit_offset: Added to the logits in training alone, shape (K,); None adds nothing.
    """

    extractor: FeatureExtractor
    layout: ActivationLayout | None
    train: Sequence[ActivationArray]
    val: ActivationArray
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    logit_offset: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LastStageResult:
    """What a probe came to.

    Attributes:
        num_passes: Over kept maps that are behind it; 0 is the head alone.
        train_loss: Weighted mean loss of the training images, in the last of these passes.
        probabilities: Of the validation images, shape (M, K).
    """

    num_passes: int
    train_loss: float
    probabilities: Tensor


def fit_last_stage(
    classifier: ImageClassifier,
    plan: LastStagePlan,
    cached: CachedActivations,
    compute_metrics: Callable[[Tensor], Mapping[str, float]],
    *,
    head_result: LastStageResult,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
) -> LastStageResult:
    """Train the last layers on rank 0, and leave them as after their best pass.

    The others wait to be handed what comes of it. BatchNorm keeps its statistics.

    Args:
        classifier: In eval mode, on the device; its head is fitted.
        plan: Steps and rates.
        cached: What it learns from.
        compute_metrics: Class probabilities of the validation images (M, K) to metrics.
        head_result: What the head alone came to.
        device: Of this rank.
        rendezvous: The ranks; None for one alone.
        reporter: Told of the progress.

    Returns:
        What they came to; ``head_result`` where no pass beat that, and they are as they were.

    Raises:
        StopRequest: A rank was asked to stop.
        TrainingError: The memory does not suffice.
    """
    how = plan.settings
    reporter.start("training the last layers", how.num_passes)
    best, best_score = (
        head_result,
        _compute_score(compute_metrics(head_result.probabilities), plan.monitor),
    )
    assert cached.layout is not None, "asked about maps"
    assert cached.extractor.split is not None, "asked about maps"
    with _reraise_out_of_memory(plan), _unfreeze_last_groups(classifier, plan.depth) as trained:
        halves = split_last_groups(classifier.train().network, plan.depth)
        assert halves is not None, "looked for by who plans"
        weights = [parameter.detach().clone() for parameter in trained]
        passes = iter_training_passes(
            halves.last_stage,
            plan.make_optimizer(classifier),
            cached.train,
            cached.labels,
            cached.weights,
            logit_offset=cached.logit_offset,
            layout=cached.layout,
            settings=how,
            device=device,
            after_step=(lambda: None) if rendezvous is None else rendezvous.check_waiting_peers,
        )
        for number, train_loss in enumerate(passes, start=1):
            with eval_mode(classifier):
                logits = compute_last_stage_logits(
                    cached.extractor.split.last_stage,
                    cached.val,
                    layout=cached.layout,
                    batch_size=how.micro_batch_size,
                    precision=how.precision,
                    device=device,
                )
            found = LastStageResult(number, train_loss, logits.softmax(dim=1))
            score = _compute_score(compute_metrics(found.probabilities), plan.monitor)
            if score > best_score:
                best, best_score = found, score
                weights = [parameter.detach().clone() for parameter in trained]
            reporter.advance()
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
    reporter.finish()
    return best


def _compute_score(metrics: Mapping[str, float], monitor: str) -> float:
    """Return the metric that decides, so that more is better."""
    return -metrics[monitor] if monitor == "loss" else metrics[monitor]


@contextmanager
def _reraise_out_of_memory(plan: LastStagePlan) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{explain_out_of_memory(error)} Training {plan.depth} layer groups on kept maps, "
            f"{plan.settings.micro_batch_size} images at once, does not fit. Take a larger "
            f"trainer.accumulate_grad_batches, or leave probe.depth out."
        ) from None


@contextmanager
def _unfreeze_last_groups(classifier: ImageClassifier, depth: int) -> Iterator[list[nn.Parameter]]:
    """Let some layer groups alone train in the block, their BatchNorm frozen; yield what trains."""
    before = classifier.depth, classifier.batch_norm
    with eval_mode(classifier):
        classifier.batch_norm = "frozen"
        classifier.set_depth(depth)
        try:
            yield [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        finally:
            classifier.batch_norm = before[1]
            classifier.set_depth(before[0])
