"""Networks of one's own, named as ``package.module:function``, with timm's contract supplied."""

import copy
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import FinetuneError, ModelError
from finetune.lookup import has_parameter, look_up
from finetune.models.layer_groups import find_classifier_parameters
from finetune.models.pretrained.weights import WeightsSource

_DEFAULT_CFG: Mapping[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
"""Preprocessing of a network that states none."""

_SIGNATURE = "def {name}(num_classes, in_chans=3, **kwargs)"
_CLASSIFIER_HINT = "Define the method get_classifier(self) that returns it"


def create_custom_network(
    backbone: str,
    *,
    num_classes: int,
    arguments: Mapping[str, Any],
    image_size: int | None = None,
) -> nn.Module:
    """Return the network that a function of the user builds, with what timm's contract needs.

    Supplied if it is missing: ``get_classifier`` (the linear layer that computes the logits),
    ``num_classes`` and ``pretrained_cfg`` (see ``find_missing_keys``). ``group_matcher`` may be
    missing: each child of the network is then a layer group.

    Args:
        backbone: Import path, ``package.module:function``; a class of networks is a function, too.
        num_classes: Number of classes K.
        arguments: Further arguments of the function; ``in_chans`` is passed where the function
            takes it, and needed by other numbers of channels than 3.
        image_size: Side of the input in pixels, passed as ``img_size`` where the function takes it;
            None for that of ``pretrained_cfg``.

    Raises:
        ModelError: The function cannot be imported or fails, or its result is not such a network.
    """
    function = import_function(backbone)
    arguments = dict(arguments)
    in_chans = arguments.pop("in_chans", 3)
    if _takes(function, "in_chans") or (in_chans != 3 and has_parameter(function, "in_chans")):
        arguments["in_chans"] = in_chans
    elif in_chans != 3:
        raise ModelError(
            f"'{backbone}' has no parameter in_chans, so that it cannot take images of {in_chans} "
            f"channels. Write {_format_signature(backbone)} and pass in_chans to the first layer."
        )
    if image_size is not None and _takes(function, "img_size"):
        arguments.setdefault("img_size", image_size)
    try:
        network = function(num_classes=num_classes, **arguments)
    except FinetuneError:
        raise
    except Exception as error:  # the user's own code
        raise ModelError(_explain_call_error(backbone, arguments, error)) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"'{backbone}' returns {_describe_type(network)}, not a torch.nn.Module. Return the "
            f"network."
        )
    _supply_contract(
        backbone, network, num_classes=num_classes, in_chans=in_chans, image_size=image_size
    )
    return network


def import_function(backbone: str) -> Callable[..., Any]:
    """Return the function or class at an import path.

    Raises:
        ModelError: It cannot be imported, or cannot be called with a number of classes.
    """
    module_name = backbone.partition(":")[0]
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ModelError(
            f"'{backbone}' is in Python's standard library, which has no networks. Pass "
            f"package.module:function of your own."
        )
    try:
        function: Any = look_up({}, backbone, setting="model.backbone")
    except FinetuneError as error:
        raise ModelError(str(error)) from error
    except Exception as error:  # the module's own code
        raise ModelError(
            f"model.backbone={backbone}: importing '{module_name}' fails with "
            f"{type(error).__name__}: {error}. Correct the module."
        ) from error
    if not callable(function):
        raise ModelError(
            f"'{backbone}' is {_describe_type(function)}, not a function. Write "
            f"{_format_signature(backbone)} that returns the network."
        )
    if not has_parameter(function, "num_classes"):
        raise ModelError(
            f"'{backbone}' has no parameter num_classes. Write {_format_signature(backbone)}."
        )
    build: Callable[..., Any] = function
    return build


def check_import_is_outside(backbone: str, folder: Path) -> None:
    """Check that a module would not be imported from a folder of a model, which may be foreign.

    Raises:
        ModelError: It would.
    """
    name = backbone.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return  # reported when it is imported
    if spec is None:
        return
    locations = [spec.origin, *(spec.submodule_search_locations or ())]
    root = folder.resolve()
    for location in locations:
        if location is not None and Path(location).resolve().is_relative_to(root):
            raise ModelError(
                f"The model in {folder} names code, '{backbone}', that is in the same folder "
                f"({location}). Such code is not executed. If you trust it, copy the module to a "
                f"folder of your own, and run from there or put that folder on PYTHONPATH."
            )


def load_weights(network: nn.Module, source: WeightsSource, overlay: Mapping[str, Any]) -> None:
    """Load a network's weights from a local file, and apply overrides of its preprocessing.

    A classifier of another number of classes is left out, as timm does it.

    Args:
        network: Network as ``create_custom_network`` returns it.
        source: Local file or folder, or none.
        overlay: Overrides of its preprocessing; ``state_dict`` has the weights.

    Raises:
        ModelError: The weights have other shapes.
    """
    cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    cfg.update({key: value for key, value in overlay.items() if key in _DEFAULT_CFG})
    missing = (key for key in find_missing_keys(network) if key not in overlay)
    network.missing_keys = tuple(missing)  # type: ignore[assignment]
    state = dict(overlay.get("state_dict", {}))
    if not source.pretrained:
        return
    own = network.state_dict()
    for name in find_classifier_parameters(network):
        if name in state and state[name].shape != own[name].shape:
            del state[name]
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"{source.label} does not match '{cfg['architecture']}': {line} Check --backbone and "
            f"model.kwargs."
        ) from error


def find_missing_keys(network: nn.Module) -> tuple[str, ...]:
    """Return the keys of preprocessing that a network of one's own leaves to the defaults."""
    return tuple(getattr(network, "missing_keys", ()))


def _supply_contract(
    backbone: str, network: nn.Module, *, num_classes: int, in_chans: int, image_size: int | None
) -> None:
    """Add what a network lacks of timm's contract, as attributes that its state does not contain.

    Raises:
        ModelError: A part is wrong, or is missing and cannot be found.
    """
    given = _read_cfg(backbone, network)
    cfg = {**_DEFAULT_CFG, **given}
    size = tuple(cfg["input_size"])
    if image_size is not None:
        size = (size[0], image_size, image_size)
    cfg["input_size"] = (in_chans, *size[1:])
    name = backbone.partition(":")[2]
    cfg |= {"architecture": backbone, "num_classes": num_classes}
    network.pretrained_cfg = network.default_cfg = cfg  # type: ignore[assignment]
    network.missing_keys = tuple(key for key in _DEFAULT_CFG if key not in given)  # type: ignore[assignment]
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
            f"'{backbone}': get_classifier returns {_describe_type(classifier)}, not a layer of "
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
            f"'{backbone}': pretrained_cfg is {_describe_type(cfg)}, not a dictionary. Write "
            f"{line}."
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
    return {key: cfg[key] for key in _DEFAULT_CFG if cfg.get(key) is not None}


def _run_and_find_head(backbone: str, network: nn.Module, *, num_classes: int) -> str | None:
    """Return the path of the linear layer whose output is the logits; None if it is another layer.

    A copy of the network is run in both modes, so that its statistics stay as they are.

    Raises:
        ModelError: The network fails, or returns anything but logits of shape (B, K).
    """
    cfg: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    images = torch.zeros(2, *cfg["input_size"])
    copied = copy.deepcopy(network)
    outputs: list[tuple[str, Tensor]] = []
    for path, module in copied.named_modules():
        if isinstance(module, nn.Linear):
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
    return next((path for path, output in reversed(outputs) if output is logits), None)


def _build_recorder(
    path: str, outputs: list[tuple[str, Tensor]]
) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        outputs.append((path, output))

    return record


def compute_code_digest(network: nn.Module, backbone: str) -> str:
    """Return a digest of the code of a network: of its layers, and the files that define them.

    Features of one network must not be read for another that has the same weights, as two versions
    of a module have with the same seed.
    """
    digest = hashlib.sha256(repr(network).encode())
    names = {backbone.partition(":")[0], *(type(module).__module__ for module in network.modules())}
    for file in _iter_sources(sorted(names)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _iter_sources(module_names: list[str]) -> Iterator[Path]:
    for name in module_names:
        if name.partition(".")[0] in ("torch", "timm", "torchvision"):
            continue
        module = sys.modules.get(name)
        source = None if module is None else getattr(module, "__file__", None)
        if source is not None and Path(source).is_file():
            yield Path(source)


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    return name in inspect.signature(function).parameters


def _explain_call_error(backbone: str, arguments: Mapping[str, Any], error: Exception) -> str:
    if not (isinstance(error, TypeError) and "unexpected keyword argument" in str(error)):
        return f"'{backbone}' fails with {type(error).__name__}: {error}. Correct the function."
    if "'in_chans'" in str(error):
        return (
            f"'{backbone}' does not take images of {arguments['in_chans']} channels: {error}. "
            f"Write {_format_signature(backbone)} and pass in_chans to the first layer."
        )
    return (
        f"'{backbone}' cannot be called: {error}. Write {_format_signature(backbone)}, or leave "
        f"the argument out of model.kwargs."
    )


def _explain_forward_error(backbone: str, cfg: Mapping[str, Any], error: Exception) -> str:
    shape = tuple(cfg["input_size"])
    reason = str(error).strip().partition("\n")[0]
    return (
        f"'{backbone}' fails on images of shape {shape}: {type(error).__name__}: {reason}. If it "
        f"needs another size, pass --image-size, or state it in the function: "
        f"network.pretrained_cfg = {{'input_size': ({shape[0]}, side, side)}}."
    )


def _format_signature(backbone: str) -> str:
    return f"`{_SIGNATURE.format(name=backbone.partition(':')[2])}`"


def _describe_type(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
