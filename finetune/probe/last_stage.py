"""Last stage of a network, fitted on cached activations and kept if it beats the head alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import TrainingError
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.models.graph_split import split_last_groups
from finetune.probe.features.extractor import ActivationLayout, FeatureExtractor
from finetune.probe.last_stage_training import (
    ActivationArray,
    LastStageSettings,
    compute_last_stage_logits,
    iter_training_epochs,
)
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
from finetune.types import Reporter

OptimizerFactory = Callable[[ImageClassifier], Optimizer]


@dataclass(frozen=True, slots=True)
class LastStagePlan:
    """Plan of a probe that trains more than the head.

    Attributes:
        depth: Number of layer groups that train, the head included; 2 or more.
        settings: Hyperparameters of the training.
        make_optimizer: Function of the classifier to an optimiser of its trainable parameters.
        monitor: Metric that selects the best epoch: a loss, or one to maximise.
        num_bytes: Size of all cached activations.
    """

    depth: int
    settings: LastStageSettings
    make_optimizer: OptimizerFactory
    monitor: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CachedActivations:
    """Training and validation data of the last stage, on rank 0.

    Attributes:
        extractor: Extractor of the activations; its split's last stage is in eval mode.
        layout: Layout of the activations of an image.
        train: Activations of the training images, (N, D) for each view.
        val: Activations of the validation images, (M, D).
        labels: Class indices of the training images, shape (N,).
        weights: Weight of each training image in the mean loss, shape (N,).
        logit_offset: Offset of the logits in the loss alone, shape (K,); None for no offset.
        train_eval_rows: Rows of the training images that are measured as validation images are,
            shape (S,); None for none.
    """

    extractor: FeatureExtractor
    layout: ActivationLayout | None
    train: Sequence[ActivationArray]
    val: ActivationArray
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    logit_offset: Tensor | None = None
    train_eval_rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class LastStageResult:
    """State of the network after some epochs of training of the last stage.

    Attributes:
        num_epochs: Number of completed epochs; 0 for the fitted head alone.
        train_loss: Weighted mean loss of the training images in the last of these epochs.
        probabilities: Class probabilities of the validation images, shape (M, K).
        train_eval: Class probabilities of the training images that are measured as these are, shape
            (S, K); None if there are none.
    """

    num_epochs: int
    train_loss: float
    probabilities: Tensor
    train_eval: Tensor | None = None


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
    """Train the last stage on rank 0, and restore the weights of its best epoch.

    The other ranks wait for the result elsewhere. BatchNorm statistics do not change.

    Args:
        classifier: Classifier in eval mode, on the device, whose head is fitted.
        plan: Plan of the training.
        cached: Data to train and validate on.
        compute_metrics: Function of the class probabilities (M, K) of the validation images.
        head_result: Result of the head alone.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.

    Returns:
        The result of the best epoch, or ``head_result`` where no epoch beats it; then the weights
        are as they were.

    Raises:
        StopRequest: A rank received a stop signal.
        TrainingError: Memory does not suffice, or the loss of a step is not finite.
    """
    settings = plan.settings
    reporter.start("training the last stage", settings.num_epochs)
    best = head_result
    best_score = _compute_score(compute_metrics(head_result.probabilities), plan.monitor)
    assert cached.layout is not None, "activations were extracted"
    assert cached.extractor.split is not None, "activations were extracted"
    with _reraise_out_of_memory(plan), _unfreeze_last_groups(classifier, plan.depth) as parameters:
        split = split_last_groups(classifier.train().network, plan.depth)
        assert split is not None, "checked in builders/probe_plan.py"
        weights = [parameter.detach().clone() for parameter in parameters]
        losses = iter_training_epochs(
            split.last_stage,
            plan.make_optimizer(classifier),
            cached.train,
            cached.labels,
            cached.weights,
            logit_offset=cached.logit_offset,
            layout=cached.layout,
            settings=settings,
            device=device,
            after_step=(lambda: None) if rendezvous is None else rendezvous.check_peers,
        )
        compute_logits = partial(
            compute_last_stage_logits,
            cached.extractor.split.last_stage,
            layout=cached.layout,
            batch_size=settings.micro_batch_size,
            precision=settings.precision,
            device=device,
        )
        for num_epochs, train_loss in enumerate(losses, start=1):
            with eval_mode(classifier):
                logits = compute_logits(cached.val)
            result = LastStageResult(num_epochs, train_loss, logits.softmax(dim=1))
            score = _compute_score(compute_metrics(result.probabilities), plan.monitor)
            if score > best_score:
                best, best_score = result, score
                weights = [parameter.detach().clone() for parameter in parameters]
            reporter.advance()
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
        if best is not head_result and cached.train_eval_rows is not None:
            with eval_mode(classifier):
                logits = compute_logits(cached.train[0], rows=cached.train_eval_rows)
            best = replace(best, train_eval=logits.softmax(dim=1))
    reporter.finish()
    return best


def _compute_score(metrics: Mapping[str, float], monitor: str) -> float:
    """Return the monitored metric, negated if it is to be minimised."""
    return -metrics[monitor] if monitor.endswith("loss") else metrics[monitor]


@contextmanager
def _reraise_out_of_memory(plan: LastStagePlan) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{explain_out_of_memory(error)} Training {plan.depth} layer groups on cached "
            f"activations with micro-batches of {plan.settings.micro_batch_size} images does not "
            f"fit. Raise trainer.accumulate_grad_batches, or set probe.depth=1."
        ) from None


@contextmanager
def _unfreeze_last_groups(classifier: ImageClassifier, depth: int) -> Iterator[list[nn.Parameter]]:
    """Train the last layer groups alone in the block, BatchNorm frozen; yield their parameters."""
    depth_before, batch_norm_before = classifier.depth, classifier.batch_norm
    with eval_mode(classifier):
        classifier.batch_norm = "frozen"
        classifier.set_depth(depth)
        try:
            yield [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        finally:
            classifier.batch_norm = batch_norm_before
            classifier.set_depth(depth_before)
