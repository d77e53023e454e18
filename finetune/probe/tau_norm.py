"""A classifier of unequal classes made even after training, without asking for more images."""

from torch import Tensor

TAU_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What tau is chosen from."""


def apply_tau_normalisation(weight: Tensor, bias: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return a head whose classes count alike however large their weights have grown.

    Kang et al. 2020, section 4.3 (https://arxiv.org/abs/1910.09217): the norms of a classifier's
    weights follow the sizes of the classes. The paper's classifiers have no bias; here it is
    divided as the weights are, so that each logit as a whole is.

    Args:
        weight: Shape (K, D).
        bias: Shape (K,).
        tau: 0 changes nothing, 1 makes all norms 1.
    """
    norms = weight.norm(dim=1).clamp(min=1e-12)
    # by their mean, so that the logits keep their size
    scale = (norms.log().mean().exp() / norms) ** tau
    return weight * scale[:, None], bias * scale
