"""New classifiers: heads with hidden layers, and the first weights of any head."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.head import find_linear_head
from finetune.models.layer_groups import find_classifier_parameters

HeadInit = Literal["zero", "xavier", "he"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations of the hidden layers by name."""


@dataclass(frozen=True, slots=True)
class MlpSettings:
    """Hidden layers of a head.

    Attributes:
        hidden: Width of each hidden layer, in order from the features.
        drop_rate: Dropout rate after each hidden layer, in [0, 1).
        activation: Name in ``ACTIVATIONS``.
    """

    hidden: tuple[int, ...] = (512,)
    drop_rate: float = 0.0
    activation: str = "relu"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a model card."""
        return {"name": "mlp", **asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "MlpSettings":
        """Return the settings of a model card.

        Raises:
            ValueError: It is a head of another kind.
        """
        if tree["name"] != "mlp":
            raise ValueError(f"unknown head '{tree['name']}'")
        return cls(
            tuple(int(width) for width in tree["hidden"]),
            float(tree["drop_rate"]),
            str(tree["activation"]),
        )


class MlpHead(nn.Module):
    """Classifier with hidden layers, each with an activation and dropout.

    Args:
        in_features: Width of the features.
        num_classes: Number of classes K.
        settings: Widths, dropout and activation.
    """

    def __init__(self, in_features: int, num_classes: int, settings: MlpSettings) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, num_classes
        self.settings = settings
        layers: list[nn.Module] = []
        width = in_features
        for next_width in settings.hidden:
            layers += [
                nn.Linear(width, next_width),
                ACTIVATIONS[settings.activation](),
                nn.Dropout(settings.drop_rate),
            ]
            width = next_width
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits (B, K) of features (B, D)."""
        logits: Tensor = self.output(self.hidden(features))
        return logits


def attach_mlp_head(network: nn.Module, settings: MlpSettings) -> None:
    """Replace the linear classifier of a network by one with hidden layers, in place.

    Raises:
        ModelError: The classifier is not one linear layer.
    """
    linear = find_linear_head(network)
    if linear is None:
        raise ModelError(
            f"model.head=mlp cannot apply to {type(network).__name__}, whose classifier is not one "
            f"linear layer. Leave model.head out, or choose another backbone."
        )
    path = next(name for name, module in network.named_modules() if module is linear)
    parent, _, name = path.rpartition(".")
    mlp = MlpHead(linear.in_features, linear.out_features, settings)
    setattr(network.get_submodule(parent), name, mlp.to(linear.weight.device))


def find_mlp_head(network: nn.Module) -> MlpHead | None:
    """Return the classifier with hidden layers; None for another kind of classifier."""
    return next((m for m in network.modules() if isinstance(m, MlpHead)), None)


def initialise_head(network: nn.Module, method: HeadInit, *, seed: int) -> None:
    """Set the first weights of the classifier, and its biases to 0, in place.

    "zero" makes all logits 0, so that the first gradients reach the classifier alone and the
    backbone is not moved by a random classifier. Hidden layers of 0 would not train; they get the
    values of "he" (He et al. 2015, https://arxiv.org/abs/1502.01852), or of "xavier" (Glorot and
    Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html) where the activation is tanh.

    Args:
        network: Network.
        method: "zero", "xavier" (uniform) or "he" (normal, by the number of inputs).
        seed: Seed of the random values; the global generator is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    head_names = find_classifier_parameters(network)
    mlp = find_mlp_head(network)
    hidden = () if mlp is None else tuple(mlp.hidden.parameters())
    hidden_method = "xavier" if mlp is not None and mlp.settings.activation == "tanh" else "he"
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in head_names:
                continue
            is_hidden = any(parameter is other for other in hidden)
            chosen = hidden_method if is_hidden and method == "zero" else method
            if parameter.ndim < 2 or chosen == "zero":
                parameter.zero_()
            elif chosen == "xavier":
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
