"""Check that a network of one's own returns logits, and not probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.errors import ModelError

ACTIVATIONS = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid)
"""Layers whose outputs are probabilities, or their logarithms."""

_TOLERANCE = 1e-4


def check_logits(
    backbone: str, logits: Tensor, outputs: Sequence[tuple[str, nn.Module, Tensor]]
) -> None:
    """Check that an output of a network is no output of a softmax or a sigmoid.

    A layer that computes probabilities is found as such; a softmax within ``forward`` by its
    values, which are positive with a sum of 1 for each image, or the logarithms of such.

    Args:
        backbone: Import path, for messages.
        logits: Output of the network for images of noise, shape (B, K).
        outputs: Path, layer and output of the layers that were run.

    Raises:
        ModelError: It is one.
    """
    for path, layer, output in reversed(outputs):
        if output is logits and isinstance(layer, ACTIVATIONS):
            where = f", its layer '{path}'" if path else ""
            raise ModelError(
                f"'{backbone}' ends with {type(layer).__name__}{where}, so that it returns no "
                f"logits. Leave the layer out: losses and predictions apply it themselves."
            )
    name = _find_softmax(logits)
    if name is not None:
        raise ModelError(
            f"'{backbone}' returns the output of a {name}, not logits: in each row "
            f"{'the values' if name == 'softmax' else 'their exponentials'} sum to 1. Return what "
            f"the {name} is applied to: losses and predictions apply it themselves."
        )


def _find_softmax(logits: Tensor) -> str | None:
    """Return the function whose output these values are; None for logits."""
    if logits.shape[1] < 2:
        return None  # the softmax of one value is 1, which a logit may be, too
    values = logits.double()
    ones = torch.ones(len(values), dtype=torch.float64)
    if (values >= 0).all() and torch.allclose(values.sum(dim=1), ones, atol=_TOLERANCE):
        return "softmax"
    if (values <= 0).all() and torch.allclose(values.exp().sum(dim=1), ones, atol=_TOLERANCE):
        return "log_softmax"
    return None
