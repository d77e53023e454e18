"""Optimizers of the plain fine-tuning loop, and the settings that a variant of it changes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.optim import Optimizer

BETA1, EPS = 0.9, 1e-8
WEIGHT_DECAY = 0.05

Relative = Literal["none", "tensor", "row"]

_TRIAL_LR, _TARGET_CHANGE = 1e-5, 0.1


@dataclass(frozen=True)
class Variant:
    """Settings of one fine-tuning run.

    Attributes:
        name: Name in the results.
        lr: Peak rate of the layer group next to the head, unless ``feature_change`` is set.
        feature_change: Relative change of the features by a step at the peak rate, extrapolated
            from a small step; 0: ``lr`` is used.
        relative: Whether rates are multiplied by the root mean square of the weights of a tensor,
            or of an output channel of it (row).
        head_lr_scale: Learning rate of the head divided by ``lr``.
        layer_decay: Factor of the rate from one of five stages to the one before it.
        warmup: Fraction of the steps with a rising rate.
        beta2: Second decay rate of AdamW.
        scale_head: Whether the head is divided by the temperature that suits the loss.
        label_smoothing: Label smoothing of the loss.
        batch_norm: frozen, or live: statistics of the batch.
        epochs: Number of epochs.
    """

    name: str
    lr: float = 3e-4
    feature_change: float = 0.0
    relative: Relative = "none"
    head_lr_scale: float = 1.0
    layer_decay: float = 0.7
    warmup: float = 0.1
    beta2: float = 0.999
    scale_head: bool = True
    label_smoothing: float = 0.1
    batch_norm: Literal["frozen", "live"] = "frozen"
    epochs: int = 6


def parse_variant(text: str) -> Variant:
    """Return the variant that ``NAME=KEY:VALUE,...`` describes.

    Raises:
        SystemExit: If a key or a value is invalid.
    """
    name, _, settings = text.partition("=")
    types = {field.name: field.type for field in fields(Variant) if field.name != "name"}
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition(":")
        if key not in types:
            raise SystemExit(f"variant {name}: no setting '{key}'; choose from {', '.join(types)}")
        try:
            values[key] = _parse_value(types[key], value)
        except ValueError as error:
            raise SystemExit(f"variant {name}: {key}: {error}") from None
    return Variant(name, **values)


def _parse_value(kind: Any, text: str) -> Any:
    choices = ("on", "off") if kind is bool else get_args(kind)
    if not choices:
        return kind(text)
    if text not in choices:
        raise ValueError(f"'{text}' is none of {', '.join(choices)}")
    return text == "on" if kind is bool else text


class ProbedNetwork(nn.Module):
    """A backbone without classifier, and a linear head.

    Args:
        backbone: Module from normalised images (B, 3, H, W) to features (B, D).
        weight: Weights of the head, shape (K, D).
        bias: Bias of the head, shape (K,).
    """

    def __init__(self, backbone: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised images (B, 3, H, W)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class RowAdamW(Optimizer):
    """AdamW whose steps are multiplied by factors of the shape of the weights, ``row_scale``."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, beta2: float) -> None:
        super().__init__(groups, {"lr": 1.0, "weight_decay": 0.0, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change all weights that have gradients."""
        assert closure is None
        for group in self.param_groups:
            (weight,) = group["params"]
            if weight.grad is None:
                continue
            state, beta2 = self.state[weight], group["beta2"]
            if not state:
                state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
            state["step"] += 1
            state["mean"].lerp_(weight.grad, 1 - BETA1)
            state["square"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
            square = state["square"] / (1 - beta2 ** state["step"])
            mean = state["mean"] / (1 - BETA1 ** state["step"])
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcmul_(mean / square.sqrt_().add_(EPS), group["row_scale"], value=-group["lr"])


def build_optimizer(network: ProbedNetwork, variant: Variant, *, lr: float) -> Optimizer:
    """Return the optimizer with one parameter group for each tensor, at its peak rate."""
    groups = list(_iter_groups(network, variant, lr))
    if variant.relative == "row":
        return RowAdamW(groups, beta2=variant.beta2)
    return torch.optim.AdamW(groups, betas=(BETA1, variant.beta2), eps=EPS, fused=True)


def _iter_groups(network: ProbedNetwork, variant: Variant, lr: float) -> Iterator[dict[str, Any]]:
    factors = compute_layer_factors(network.backbone, layer_decay=variant.layer_decay)
    for name, weight in network.backbone.named_parameters():
        rate, row_scale = lr * factors[name], torch.ones_like(weight)
        if variant.relative == "tensor":
            rate *= max(1e-4, _compute_rms(weight))
        elif variant.relative == "row":
            row_scale = _compute_row_scale(weight)
        decay = WEIGHT_DECAY if weight.ndim > 1 else 0.0
        yield {"params": [weight], "lr": rate, "weight_decay": decay, "row_scale": row_scale}
    rate = lr * variant.head_lr_scale
    rate *= 1.0 if variant.relative == "none" else _compute_rms(network.head.weight)
    for weight in network.head.parameters():
        row_scale = torch.ones_like(weight)
        yield {"params": [weight], "lr": rate, "weight_decay": 0.0, "row_scale": row_scale}


def compute_layer_factors(backbone: nn.Module, *, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter, 1 in the group next to the head.

    With more than five layer groups, the factor per group is closer to 1, so that the first group
    has ``layer_decay ** 4``.
    """
    module: Any = backbone
    groups = group_parameters(module, module.group_matcher(coarse=True), reverse=False)
    last = len(groups) - 1
    factor = layer_decay ** (4 / max(4, last))
    return {
        name: factor ** (last - position)
        for position, index in enumerate(sorted(groups))
        for name in groups[index]
    }


def _compute_rms(weight: Tensor) -> float:
    return weight.detach().square().mean().sqrt().item()


def _compute_row_scale(weight: Tensor) -> Tensor:
    if weight.ndim == 1:
        return torch.full_like(weight.detach(), max(1e-6, _compute_rms(weight)))
    rms = weight.detach().flatten(1).square().mean(1).sqrt().clamp_min(1e-6)
    return rms.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight).contiguous()


def measure_change_per_lr(
    network: ProbedNetwork,
    losses: Iterator[Tensor],
    compute_features: Callable[[], Tensor],
    *,
    num_batches: int,
    layer_decay: float,
) -> float:
    """Return the relative change of the features by a step, per unit of the learning rate.

    The step has the direction of Adam with the mean gradients and mean squared gradients of some
    batches, all at the present weights. The network is left as it was.

    Args:
        network: Network in evaluation mode.
        losses: Losses of the batches, each computed when it is needed.
        compute_features: Function that returns the features (B, D) of other images.
        num_batches: Number of losses.
        layer_decay: Factor of the rate from one of five stages to the one before it.
    """
    names = dict(network.backbone.named_parameters())
    means = {name: torch.zeros_like(weight) for name, weight in names.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in names.items()}
    for loss in losses:
        for name, found in zip(names, torch.autograd.grad(loss, list(names.values())), strict=True):
            means[name] += found / num_batches
            squares[name] += found.square() / num_batches
    factors = compute_layer_factors(network.backbone, layer_decay=layer_decay)
    start = {name: weight.detach().clone() for name, weight in names.items()}
    moves = {name: factors[name] * means[name] / (squares[name].sqrt() + EPS) for name in names}
    features = compute_features()
    spread = float((features - features.mean(dim=0)).norm())
    lr = _TRIAL_LR
    for _ in range(2):
        with torch.no_grad():
            for name, weight in names.items():
                weight.copy_(start[name] - lr * moves[name])
        slope = float((compute_features() - features).norm()) / spread / lr
        lr = _TARGET_CHANGE / slope
    with torch.no_grad():
        for name, weight in names.items():
            weight.copy_(start[name])
    return slope
