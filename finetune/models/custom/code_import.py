"""Import of the function that builds a network of one's own, and a digest of its code."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from finetune.errors import FinetuneError, ModelError
from finetune.lookup import look_up
from finetune.models.custom.code_trust import is_torchvision_network

_SIGNATURE = "def {name}(num_classes, in_chans=3, **kwargs)"


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
            f"'{backbone}' is {describe_type(function)}, not a function. Write "
            f"{format_signature(backbone)} that returns the network."
        )
    if not _names_num_classes(function) and not is_torchvision_network(backbone):
        raise ModelError(
            f"'{backbone}' has no parameter num_classes. Write {format_signature(backbone)}."
        )
    build: Callable[..., Any] = function
    return build


def _names_num_classes(function: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter of that name: any other keyword is no network's.

    Functions that pass all keywords on include those that download and execute files.
    """
    try:
        return "num_classes" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled functions have no signature
        return False


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


def format_signature(backbone: str) -> str:
    """Return the line that defines a function of an import path, for messages."""
    return f"`{_SIGNATURE.format(name=backbone.partition(':')[2])}`"


def describe_type(value: object) -> str:
    """Return what a value is, for messages."""
    return "None" if value is None else f"an object of type {type(value).__name__}"
