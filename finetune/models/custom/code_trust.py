"""Code that a stored model names: whether it may be imported.

The name of the code is part of the model, which may be foreign. It may name modules that the user
keeps, and networks of torchvision; an installed package may contain a function that executes
whatever its arguments say, as ``torch.hub.load`` does.
"""

import inspect
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from finetune.errors import ModelError
from finetune.lookup import find_module_inside, find_module_locations

TRUST_VARIABLE = "FINETUNE_TRUSTED_MODULES"
"""Environment variable with the modules, separated by commas, that any model may name."""

_LIBRARIES = {
    "finetune", "torch", "torchvision", "timm", "transformers", "pytorch_lightning", "lightning",
}  # fmt: skip
"""Packages that are no code of the user, wherever they lie."""

_SITE_FOLDERS = {"site-packages", "dist-packages"}

_named_backbones: set[str] = set()


def remember_backbone(backbone: str) -> None:
    """Remember that the user has named a network, so that its own checkpoints may name it."""
    _named_backbones.add(backbone)


def check_stored_code(backbone: str, folder: Path) -> None:
    """Check that a network that a stored model names is code that its user trusts.

    Such code lies outside the model and outside the installed packages, or is a network of
    torchvision, or was named by the user, who sets ``FINETUNE_TRUSTED_MODULES`` to do so.

    Args:
        backbone: Import path, ``package.module:function``. Nothing is imported.
        folder: Folder of the model.

    Raises:
        ModelError: It is not.
    """
    module_name = backbone.partition(":")[0]
    locations = find_module_locations(module_name)
    root = folder.resolve()
    if (location := find_module_inside(module_name, folder)) is not None:
        raise ModelError(
            f"The model in {folder} names code, '{backbone}', that is in the same folder "
            f"({location}). Such code is not executed. If you trust it, copy the module to a "
            f"folder of your own, and run from there or put that folder on PYTHONPATH."
        )
    if (
        is_torchvision_network(backbone)
        or backbone in _named_backbones
        or _is_trusted(module_name)
        or not (reason := _find_reason(module_name.partition(".")[0], locations, root))
    ):
        return
    raise ModelError(
        f"The model in {folder} names code, '{backbone}', that is {reason}. Such code is not "
        f"executed: it may not be yours. If you trust the model and the code, set the environment "
        f"variable {TRUST_VARIABLE}={module_name}"
    )


def is_torchvision_network(backbone: str) -> bool:
    """Return whether an import path names a builder or a class of networks of torchvision."""
    module_name, _, attribute = backbone.partition(":")
    if module_name != "torchvision.models" and not module_name.startswith("torchvision.models."):
        return False
    value: Any = getattr(sys.modules.get(module_name), attribute, None)
    if attribute in torchvision.models.list_models(module=torchvision.models):
        return value is torchvision.models.get_model_builder(attribute)
    is_network = inspect.isclass(value) and issubclass(value, nn.Module)
    return is_network and value.__module__.startswith("torchvision.models.")


def _find_reason(package: str, locations: list[Path], root: Path) -> str | None:
    """Return why code is none of the user's own; None if it is."""
    if package in _LIBRARIES or package in sys.stdlib_module_names:
        return f"of the library {package}"
    for location in locations:
        if _is_installed(location) or _is_installed(location.resolve()):
            return f"of an installed package ({location})"
        if root.is_relative_to(location.resolve()):
            return f"in a folder that contains the model ({location})"
    return None


def _is_installed(location: Path) -> bool:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return bool(_SITE_FOLDERS & {*location.parts}) or any(map(location.is_relative_to, folders))


def _is_trusted(module_name: str) -> bool:
    """Return whether the user's variable names a module, or a package that it is in."""
    names = (name.strip() for name in os.environ.get(TRUST_VARIABLE, "").split(","))
    return any(name and f"{module_name}.".startswith(f"{name}.") for name in names)
