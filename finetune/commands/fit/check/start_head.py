"""Start of the check: weights and learning rate as a run has them before its first epoch."""

from collections.abc import Sequence

import numpy as np
import torch

from finetune.builders import Training
from finetune.commands.fit.check.plain_loss import (
    count_errors,
    predict_logits,
    select_images,
)
from finetune.commands.measurement.initialization import measure_learning_rate
from finetune.data.dataset import Batch
from finetune.models.head import capture_head_inputs, find_linear_head, set_head
from finetune.probe.logistic import HeadFitter, LogisticProblem

START_PENALTY = 0.1
"""L2 penalty of the head: weak enough for no error where features differ, and strong enough for a
loss that training can still lower."""

FINAL_PENALTIES = (0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties of a head without training after it."""

_NUM_MEASURED = 8
"""Images of the steps by which a learning rate is measured."""


def fit_start_head(
    training: Training, batch: Batch, *, penalties: Sequence[float] = (START_PENALTY,)
) -> None:
    """Fit the head to the features of a few images, as the linear probe of a run does to all.

    Args:
        training: Objects of the run; the head of its network is changed.
        batch: Images with labels.
        penalties: L2 penalties, descending: the first with which no image is wrong, or the last.
    """
    module = training.module
    head = find_linear_head(module.classifier.network)
    assert head is not None, "a probe has a linear head"
    with capture_head_inputs(head) as inputs:
        predict_logits(module, batch["image"])
    features = torch.cat(inputs).float().cpu().numpy()
    problem = LogisticProblem(
        features,
        batch["label"].cpu().numpy(),
        np.ones((1, len(features))),
        len(training.data.classes),
    )
    fitter, labels = HeadFitter(problem), batch["label"].cpu()
    for penalty in penalties:
        fitted = fitter.fit(penalty)[0]
        if count_errors(fitted.compute_logits(features), labels) == 0:
            break
    max_norm = None if training.probe is None else training.probe.head_max_norm
    fitted = fitted.scale_to(max_norm)
    set_head(head, weight=fitted.weight, bias=fitted.bias)


def choose_learning_rate(training: Training, batch: Batch) -> tuple[float, str]:
    """Return the learning rate of the head and its reason.

    A rate that a run measures is measured here on the images of the check, after their head.
    """
    lr = training.config.optim.lr
    if lr != "auto":
        return float(lr), training.reasons.get("optim.lr", "")
    count = min(_NUM_MEASURED, len(batch["label"]) // 2)
    parts = np.array_split(np.arange(count), 4 if count >= 4 else 1)
    steps = [select_images(batch, rows) for rows in parts]
    compared = select_images(batch, np.arange(count, min(len(batch["label"]), count + 8)))
    choice = measure_learning_rate(training, training.module.device, batches=[*steps, compared])
    return float(choice["optim.lr"].value), "measured on the images of the check"
