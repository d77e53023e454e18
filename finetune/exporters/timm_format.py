"""Check of which models the timm format can hold."""

from finetune.lookup import is_import_path


def explain_refusal(backbone: str, head: str | None) -> str | None:
    """Return why the timm format cannot apply to a model, and the remedy; None where it can.

    Args:
        backbone: timm name or ``package.module:function``.
        head: Name of a classifier with hidden layers; None or "linear" for a linear one.
    """
    if is_import_path(backbone):
        return (
            f"The timm format cannot apply to '{backbone}', which timm does not know. Copy "
            f"the bundle and the module instead: finetune predict and finetune evaluate read the "
            f"bundle wherever Python can import the module."
        )
    if head not in (None, "linear"):
        return (
            f"The timm format cannot apply to model.head={head}, whose hidden layers "
            f"timm does not know. Copy the bundle instead: finetune predict and finetune evaluate "
            f"read it."
        )
    return None
