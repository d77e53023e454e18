"""Linear probe of a run: a head fitted on the features of the frozen backbone.

Frozen features do not change, so they are extracted once, and the head is fitted on them to
convergence. The probe is a complete linear evaluation, and it is the initial head of fine-tuning
and the baseline to beat (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.distributed.collectives import broadcast_weights
from finetune.distributed.rendezvous import Rendezvous
from finetune.evaluation.validation import compute_outputs, compute_validation_metrics
from finetune.models.classifier import ImageClassifier, eval_mode
from finetune.models.head import set_head
from finetune.probe.cross_validation import fit_head
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.features.feature_store import StoredFeatures
from finetune.probe.last_stage import (
    CachedActivations,
    LastStageResult,
    fit_last_stage,
)
from finetune.probe.logistic import Targets
from finetune.probe.multi_label.binary_regression import (
    compute_held_out_mean_average_precision,
    score_label_logits,
)
from finetune.probe.records.probe_records import ProbeImages, ProbePlan, ProbeResult
from finetune.probe.stage_probes import probe_stages
from finetune.types import Reporter

__all__ = ["GroupFinder", "ProbeImages", "ProbePlan", "ProbeResult", "fit_probe"]

GroupFinder = Callable[[Sequence[StoredFeatures]], NDArray[np.int64]]
"""Function from the features of the training images and of the validation images to the groups of
the training images, in the form of ``encode_groups``."""


def fit_probe(
    classifier: ImageClassifier,
    plan: ProbePlan,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
    find_groups: GroupFinder | None = None,
) -> ProbeResult | None:
    """Fit the head of a network on features of its backbone, in place, on rank 0.

    With a plan for the last stage, that is trained next, and keeps its weights where the head alone
    is better on the validation images. All ranks of the process group call it and split the feature
    extraction; rank 0 alone writes and fits.

    Args:
        classifier: Classifier whose head is fitted; it is left on the device.
        plan: Images and settings.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.
        find_groups: Function that finds the groups of the cross-validation with the features, on
            rank 0 alone; None for those of the plan.

    Returns:
        The result on rank 0; None on the others.

    Raises:
        DataError: A file can no longer be read as before.
        StorageError: The disk is full or fails, or the activations exceed the cache limit.
        StopRequest: A rank received a stop signal.
        TrainingError: The features are not finite, or memory does not suffice.
    """
    start = time.monotonic()
    classifier.to(device)
    if rendezvous is not None:
        broadcast_weights(classifier)
    depth = 1 if plan.last_stage is None else plan.last_stage.depth
    with eval_mode(classifier):
        cached_extractor = CachedFeatureExtractor(
            create_feature_extractor(
                classifier.network, depth=depth, with_stages=plan.extraction.with_stages
            ),
            plan.extraction,
            device=device,
            rendezvous=rendezvous,
            reporter=reporter,
        )
        train_outputs = cached_extractor.extract(plan.train.paths, plan.views)
        val_outputs = cached_extractor.extract(plan.val.paths)
        if rendezvous is not None and rendezvous.launch.rank > 0:
            return None
        train_views, val_features = train_outputs[0], val_outputs[0][0]
        features = (train_views[0], val_features)
        cv_head = fit_head(
            train_views,
            plan.train.targets,
            plan.train.weights,
            num_classes=len(plan.classes),
            groups=plan.train.groups if find_groups is None else find_groups(features),
            logit_offset=plan.logit_offset,
            positive_weights=plan.positive_weights,
        )
        stages = probe_stages(
            cached_extractor,
            train_outputs,
            plan.train.targets,
            plan.train.weights,
            cv_head=cv_head,
            last_name=classifier.groups[1].name,
            logit_offset=plan.logit_offset,
        )
        head = cv_head.head.scale_to(plan.head_max_norm)
        set_head(cached_extractor.extractor.head, weight=head.weight, bias=head.bias)
        val_logits = head.compute_logits(val_features)
        val_targets, sample = torch.from_numpy(plan.val.targets), plan.train_eval_rows
        train_logits = head.compute_logits(train_views[0])
        best = head_result = LastStageResult(
            num_epochs=0,
            train_loss=_compute_mean_loss(train_logits, plan),
            probabilities=compute_outputs(val_logits, val_targets),
            train_eval=None
            if sample is None
            else compute_outputs(train_logits[sample], val_targets),
        )
        if plan.last_stage is not None:
            best = fit_last_stage(
                classifier,
                plan.last_stage,
                CachedActivations(
                    cached_extractor.extractor,
                    cached_extractor.activation_layout,
                    train_outputs[1],
                    val_outputs[1][0],
                    plan.train.labels,
                    plan.train.weights,
                    plan.logit_offset,
                    sample,
                ),
                partial(_compute_metrics, plan=plan, targets=plan.val.targets),
                head_result=head_result,
                device=device,
                rendezvous=rendezvous,
                reporter=reporter,
            )
    num_train, num_val = len(plan.train.labels), len(plan.val.labels)
    val_probabilities = _compute_offset_probabilities(val_logits, plan)
    return ProbeResult(
        features=features,
        cv_head=cv_head,
        train_loss=best.train_loss,
        metrics=_compute_metrics(best.probabilities, plan, targets=plan.val.targets),
        held_out_rows=np.concatenate([cv_head.held_out_rows, num_train + np.arange(num_val)]),
        held_out_probabilities=torch.cat([cv_head.held_out_probabilities, val_probabilities]),
        is_correct=_find_correct(best.probabilities, plan),
        last_stage_epochs=None if plan.last_stage is None else best.num_epochs,
        head_metrics=_compute_metrics(head_result.probabilities, plan, targets=plan.val.targets),
        stages=stages,
        seconds=time.monotonic() - start,
        num_images=num_train + num_val,
        num_computed=cached_extractor.num_computed,
        held_out_mean_average_precision=None
        if plan.train.multi_hot is None
        else compute_held_out_mean_average_precision(
            cv_head.held_out_probabilities,
            torch.from_numpy(plan.train.multi_hot[cv_head.held_out_rows]),
        ),
        train_eval_metrics={}
        if best.train_eval is None or sample is None
        else _compute_metrics(best.train_eval, plan, targets=plan.train.targets[sample]),
    )


def _compute_metrics(
    probabilities: Tensor, plan: ProbePlan, *, targets: Targets
) -> Mapping[str, float]:
    """Return the metrics of images from their class probabilities (N, K); none without images."""
    if not len(targets):
        return {}
    train_counts = np.bincount(plan.train.labels, minlength=len(plan.classes)).tolist()
    if plan.train.multi_hot is not None:
        train_counts = plan.train.multi_hot.sum(axis=0).astype(int).tolist()
    return compute_validation_metrics(
        _shift_probabilities(probabilities, plan),
        torch.from_numpy(targets),
        classes=plan.classes,
        train_counts=train_counts,
        logit_shift=plan.eval_logit_shift,
    )


def _compute_offset_probabilities(logits: Tensor, plan: ProbePlan) -> Tensor:
    """Return the class probabilities of logits (N, K) with the logit offset of the fit."""
    if plan.val.multi_hot is not None:
        return logits.sigmoid()
    return (logits if plan.logit_offset is None else logits + plan.logit_offset).softmax(dim=1)


def _shift_probabilities(probabilities: Tensor, plan: ProbePlan) -> Tensor:
    """Return probabilities (N, K) after the plan's shift of their logits."""
    if plan.eval_logit_shift is None:
        return probabilities
    return (
        probabilities.clamp_min(torch.finfo(torch.float32).tiny).log() + plan.eval_logit_shift
    ).softmax(1)


def _find_correct(probabilities: Tensor, plan: ProbePlan) -> NDArray[np.bool_]:
    """Return whether each validation image is classified correctly, with all of its labels, (N,).

    Args:
        probabilities: Class probabilities, or the logits of multi-label images, shape (N, K).
        plan: Plan of the probe.
    """
    if plan.val.multi_hot is not None:
        is_right = (probabilities.numpy() > 0) == (plan.val.multi_hot > 0)
        return np.asarray(is_right.all(axis=1))
    predictions = _shift_probabilities(probabilities, plan).argmax(dim=1).numpy()
    return np.asarray(predictions == plan.val.labels)


def _compute_mean_loss(logits: Tensor, plan: ProbePlan) -> float:
    """Return the weighted mean loss of the training images from their logits (N, K)."""
    images = plan.train
    if images.multi_hot is not None:
        targets, weights = torch.from_numpy(images.multi_hot), torch.from_numpy(images.weights)
        return score_label_logits(logits, targets, weights.float(), plan.positive_weights)[0]
    labels = torch.from_numpy(images.labels)
    sample_weights = torch.from_numpy(images.weights / images.weights.sum()).float()
    if plan.logit_offset is not None:
        logits = logits + plan.logit_offset
    return -float(logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0] @ sample_weights)
