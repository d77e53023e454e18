"""Numeric precision in which a model is measured, in its epochs and as it is used."""


def is_half_precision(precision: object) -> bool:
    """Return whether a value of ``trainer.precision`` computes in 16 bits, as "bf16-mixed" does."""
    return "16" in str(precision)


def describe_measurement(precision: object) -> str:
    """Return why the kept model has other values than its epoch; empty in 32 bits.

    Args:
        precision: Value of ``trainer.precision``.
    """
    if not is_half_precision(precision):
        return ""
    return (
        f"Epochs are measured in {precision}, as they train, and the kept model in 32 bits, as it "
        f"is used: its values differ a little from those of its epoch."
    )
