"""Options of predictions that a multi-label model does not have."""

from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError


def check_top_k(top_k: int, card: ModelCard) -> None:
    """Check that a number of classes is not set for a model that predicts any number of labels.

    Raises:
        ConfigError: It is.
    """
    if card.is_multi_label and top_k != 1:
        raise ConfigError(
            f"--top-k {top_k} cannot apply to a multi-label model, which predicts each label whose "
            f"probability reaches its threshold. Leave it out: the output has the probability of "
            f"every label."
        )
