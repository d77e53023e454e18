"""Values of ``--weights``: how several models are averaged."""

from finetune.errors import ConfigError

WEIGHTINGS = ("equal", "val")
"""Values of ``--weights``."""


def check_weighting(weights: str, *, num_models: int) -> None:
    """Check the weights of several models.

    Args:
        weights: Value of ``--weights``.
        num_models: Number of models.

    Raises:
        ConfigError: The value is unknown, or there is one model to weight.
    """
    if weights not in WEIGHTINGS:
        raise ConfigError(f"--weights {weights}: unknown. Choose one of {', '.join(WEIGHTINGS)}.")
    if num_models == 1 and weights != "equal":
        raise ConfigError(
            f"--weights {weights} weights several models, but there is one. Name the others, "
            f"too, or leave out --weights."
        )
