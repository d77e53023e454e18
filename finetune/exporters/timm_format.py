"""Check of which models the timm format can hold."""

from pathlib import Path

from finetune.lookup import is_import_path


def explain_refusal(backbone: str, head: str | None, *, bundle: Path | None = None) -> str | None:
    """Return why the timm format cannot apply to a model, and the remedy; None where it can.

    Args:
        backbone: timm name or ``package.module:function``.
        head: Name of a classifier with hidden layers; None or "linear" for a linear one.
        bundle: Folder of the model, which the message names; None if it has none.
    """
    name = "the bundle" if bundle is None else f"the bundle {bundle}"
    if is_import_path(backbone):
        return (
            f"The timm format cannot apply to '{backbone}', which timm does not know. "
            f"Choose --format onnx or torch, which need no code of yours, or copy {name} and the "
            f"module. The commands finetune predict and finetune evaluate read the bundle wherever "
            f"Python can import the module."
        )
    if head not in (None, "linear"):
        return (
            f"The timm format cannot apply to model.head={head}, whose hidden layers "
            f"timm does not know. Choose --format onnx or torch, or copy {name}, which the "
            f"commands finetune predict and finetune evaluate read."
        )
    return None
