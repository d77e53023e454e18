"""Adjustment of logits to the class frequencies of the images that a temperature is fitted on."""

import torch
from torch import Tensor

from finetune.bundle.model_card import ModelCard
from finetune.evaluation.priors import compute_logit_shift, normalize_prior


def compute_label_shift(target: Tensor, card: ModelCard) -> Tensor | None:
    """Return the logit adjustment to the class prior of validation images, shape (K,).

    Without it, a difference of the priors would be mistaken for over- or underconfidence. Each
    class counts one image more than it has (Laplace smoothing), so that one without images is rare
    and not impossible. None if the class counts agree with the model prior up to chance.

    Args:
        target: True class indices, shape (N,).
        card: Model card of the network.
    """
    priors = card.priors
    if priors is None or min(priors.model) <= 0 or card.score_loss is not None:
        return None
    counts = torch.bincount(target, minlength=len(priors.model))
    expected = torch.tensor(priors.model) * len(target)
    # Pearson's chi-squared statistic, compared with its mean plus two standard deviations
    mean = len(counts) - 1
    if float(((counts - expected) ** 2 / expected).sum()) <= mean + 2 * (2 * mean) ** 0.5:
        return None
    return torch.tensor(compute_logit_shift(normalize_prior((counts + 1).tolist()), priors.model))
