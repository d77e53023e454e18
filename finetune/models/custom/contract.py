"""Parts of timm's contract that a network needs: checked, and supplied where they are missing."""

import copy
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from finetune.errors import ModelError
from finetune.models.custom.code_import import compute_code_digest, describe_type
from finetune.models.custom.output_check import ACTIVATIONS, check_logits
from finetune.models.layer_groups import find_classifier_parameters

DEFAULT_CFG: Mapping[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
"""Preprocessing of a network that states none."""

_CLASSIFIER_HINT = "Define the method get_classifier(self) that returns it"


def find_missing_keys(network: nn.Module) -> tuple[str, ...]:
    """Return the keys of preprocessing that a network of one's own leaves to the defaults."""
    return tuple(getattr(network, "missing_keys", ()))


def supply_contract(
    backbone: str, network: nn.Module, *, num_classes: int, in_chans: int, image_size: int | None
) -> None:
    """Add what a network lacks of timm's contract, as attributes that its state does not contain.

    Raises:
        ModelError: A part is wrong, or is missing and cannot be found.
    """
    _check_initialised(backbone, network)
    given = _read_cfg(backbone, network)
    cfg = {**DEFAULT_CFG, **given}
    size = tuple(cfg["input_size"])
    if image_size is not None:
        size = (size[0], image_size, image_size)
    cfg["input_size"] = (in_chans, *size[1:])
    name = backbone.partition(":")[2]
    cfg |= {"architecture": backbone, "num_classes": num_classes}
    network.pretrained_cfg = network.default_cfg = cfg  # type: ignore[assignment]
    network.missing_keys = tuple(key for key in DEFAULT_CFG if key not in given)  # type: ignore[assignment]
    network.num_classes = num_classes  # type: ignore[assignment]
    network.architecture_id = f"{name}-{compute_code_digest(network, backbone)}"  # type: ignore[assignment]
    head = _run_and_find_head(backbone, network, num_classes=num_classes)
    if not callable(getattr(network, "get_classifier", None)):
        if head is None:
            raise ModelError(
                f"'{backbone}' has no method get_classifier, and its logits are not the output of "
                f"a linear layer. {_CLASSIFIER_HINT}, as in `return self.fc`."
            )
        network.classifier_path = head  # type: ignore[assignment]
        # bound to the instance, which torch.save and the state dict pass over; a deep copy of the
        # network has methods of its own
        network.get_classifier = MethodType(_get_classifier, network)  # type: ignore[assignment]
    _check_classifier(backbone, network)
    if not isinstance(getattr(network, "num_features", None), int):
        names = find_classifier_parameters(network)
        shapes = (tuple(p.shape) for name, p in network.named_parameters() if name in names)
        # inputs of the classifier; timm writes it into config.json
        network.num_features = max(shapes, key=len)[-1]  # type: ignore[assignment]


def _check_initialised(backbone: str, network: nn.Module) -> None:
    """Raise ModelError where a lazy layer has no shape, and so no parameters, yet."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    names = [name for name, tensor in tensors if is_lazy(tensor)]
    if names:
        raise ModelError(
            f"'{backbone}' has parameters without a shape: {', '.join(names[:3])}"
            f"{' …' if len(names) > 3 else ''}. State the sizes of its lazy layers, as in "
            f"nn.Linear(in_features, out_features), or run the network on an image before "
            f"returning it."
        )


def _get_classifier(network: nn.Module) -> nn.Module:
    return network.get_submodule(str(network.classifier_path))


def _check_classifier(backbone: str, network: nn.Module) -> None:
    classifier = network.get_classifier()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, tuple | list) else (classifier,)
    own = {id(parameter) for parameter in network.parameters()}
    is_valid = all(
        isinstance(module, nn.Module) and all(id(p) in own for p in module.parameters())
        for module in modules
    )
    if not is_valid or not any(True for module in modules for _ in module.parameters()):
        raise ModelError(
            f"'{backbone}': get_classifier returns {describe_type(classifier)}, not a layer of "
            f"the network with weights. {_CLASSIFIER_HINT}, as in `return self.fc`."
        )


def _read_cfg(backbone: str, network: nn.Module) -> dict[str, Any]:
    """Return the preprocessing that a network states, as plain values.

    Raises:
        ModelError: It is no mapping, or has a value that cannot be.
    """
    stated: Any = getattr(network, "pretrained_cfg", None)
    if stated is None:
        return {}
    to_dict = getattr(stated, "to_dict", None)  # timm's PretrainedCfg
    cfg = to_dict() if callable(to_dict) else stated
    line = "network.pretrained_cfg = {'input_size': (3, 224, 224), 'mean': (...), 'std': (...)}"
    if not isinstance(cfg, Mapping):
        raise ModelError(
            f"'{backbone}': pretrained_cfg is {describe_type(cfg)}, not a dictionary. Write {line}."
        )
    size = cfg.get("input_size")
    is_size = size is None or (
        isinstance(size, tuple | list)
        and len(size) == 3
        and all(isinstance(side, int) and side > 0 for side in size)
        and size[1] == size[2]
    )
    if not is_size:
        raise ModelError(
            f"'{backbone}': pretrained_cfg['input_size'] is {size!r}, not (channels, side, side). "
            f"Write {line}."
        )
    return {key: cfg[key] for key in DEFAULT_CFG if cfg.get(key) is not None}


def _run_and_find_head(backbone: str, network: nn.Module, *, num_classes: int) -> str | None:
    """Return the path of the linear layer whose output is the logits; None if it is another layer.

    A copy of the network is run in both modes, so that its statistics stay as they are. Its input
    is noise, which shows more of the output than blank images, for which it may be zero.

    Raises:
        ModelError: The network fails, or returns anything but logits of shape (B, K).
    """
    cfg: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    images = torch.randn(2, *cfg["input_size"], generator=torch.Generator().manual_seed(0))
    copied = copy.deepcopy(network)
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    for path, module in copied.named_modules():
        if isinstance(module, (nn.Linear, *ACTIVATIONS)):
            module.register_forward_hook(_build_recorder(path, outputs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for is_training in (True, False):
            outputs.clear()
            try:
                logits = copied.train(is_training)(images)
            except Exception as error:
                raise ModelError(_explain_forward_error(backbone, cfg, error)) from error
            if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
                found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                mode = "training" if is_training else "evaluation"
                raise ModelError(
                    f"'{backbone}' returns {found} in {mode} mode for 2 images, not logits of "
                    f"shape (2, {num_classes}). Return the logits alone, without softmax."
                )
            check_logits(backbone, logits, outputs)
    return next((path for path, _, output in reversed(outputs) if output is logits), None)


def _build_recorder(
    path: str, outputs: list[tuple[str, nn.Module, Tensor]]
) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        del inputs
        outputs.append((path, module, output))

    return record


def _explain_forward_error(backbone: str, cfg: Mapping[str, Any], error: Exception) -> str:
    shape = tuple(cfg["input_size"])
    reason = str(error).strip().partition("\n")[0]
    return (
        f"'{backbone}' fails on images of shape {shape}: {type(error).__name__}: {reason}. If it "
        f"needs another size, pass --image-size, or state it in the function: "
        f"network.pretrained_cfg = {{'input_size': ({shape[0]}, side, side)}}."
    )
