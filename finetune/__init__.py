"""Fine-tune pretrained timm backbones on a folder of images.

The verbs of the command line are functions here: ``fit``, ``resume``, ``compare``, ``evaluate``,
``predict``, ``export``, ``fetch``. They are imported when they are first used, so that ``import
finetune`` is light.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_LAZY_IMPORTS = {
    "fit": "finetune.commands.fit.fit",
    "plan_fit": "finetune.commands.fit.fit",
    "resume": "finetune.commands.fit.fit",
    "evaluate": "finetune.commands.evaluate",
    "predict": "finetune.commands.predict",
    "compare": "finetune.commands.compare.compare",
    "export": "finetune.commands.export",
    "fetch": "finetune.commands.fetch",
    "Config": "finetune.config.schema",
}

__all__ = ["__version__", *_LAZY_IMPORTS]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("finetune")
    if name in _LAZY_IMPORTS:
        return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute '{name}'")


class _TimmImportHook:
    """Registers GoogLeNet and AlexNet once timm is imported, whichever comes first.

    An exported GoogLeNet loads with ``timm.create_model`` after ``import finetune``, and yet
    importing finetune alone must not import timm and torch.
    """

    def __init__(self) -> None:
        self._is_searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm" or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self._is_searching = False
        if spec is None or spec.loader is None:
            return None
        run_timm = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run_timm(module)
            # not before: who merely asks whether timm is installed throws this spec away
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module("finetune.models.torchvision_models")

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("finetune.models.torchvision_models")
else:
    sys.meta_path.insert(0, _TimmImportHook())
