"""Fine-tune pretrained timm backbones on a folder of images.

The commands of the command line are functions here: ``fit``, ``resume``, ``inspect``, ``compare``,
``tune``, ``evaluate``, ``predict``, ``export``, ``fetch``, and ``write_report`` for the command
``report``, whose name a package has. They are imported on first use, so that ``import finetune`` is
light.
"""

from __future__ import annotations

import importlib

# typing would be the slowest import before the command line handles Ctrl-C
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from finetune.api.dataset_functions import (
        compare,
        find_learning_rate,
        fit,
        inspect,
        plan_fit,
        resume_tune,
        tune,
    )
    from finetune.commands.evaluate import evaluate
    from finetune.commands.export.export import export
    from finetune.commands.fetch import fetch
    from finetune.commands.fit.fit import resume
    from finetune.commands.predict.predict import predict, stream_predictions
    from finetune.commands.push.push import push
    from finetune.commands.report.report import write_report
    from finetune.config.schema import Config

    __version__: str

__all__ = [
    "Config",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "fetch",
    "find_learning_rate",
    "fit",
    "inspect",
    "plan_fit",
    "predict",
    "push",
    "resume",
    "resume_tune",
    "stream_predictions",
    "tune",
    "write_report",
]

_LAZY_IMPORTS = {
    "fit": "finetune.api.dataset_functions",
    "plan_fit": "finetune.api.dataset_functions",
    "find_learning_rate": "finetune.api.dataset_functions",
    "resume": "finetune.commands.fit.fit",
    "tune": "finetune.api.dataset_functions",
    "resume_tune": "finetune.api.dataset_functions",
    "evaluate": "finetune.commands.evaluate",
    "predict": "finetune.commands.predict.predict",
    "stream_predictions": "finetune.commands.predict.predict",
    "compare": "finetune.api.dataset_functions",
    "inspect": "finetune.api.dataset_functions",
    "export": "finetune.commands.export.export",
    "push": "finetune.commands.push.push",
    "fetch": "finetune.commands.fetch",
    "write_report": "finetune.commands.report.report",
    "Config": "finetune.config.schema",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("finetune-vision")
    if name in _LAZY_IMPORTS:
        return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute '{name}'")
