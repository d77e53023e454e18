"""Network of a model card, built again for its stored weights."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import nn

from finetune.bundle.model_card import ModelCard
from finetune.bundle.verification.weights_check import check_num_classes, check_state
from finetune.errors import ModelError
from finetune.lookup import is_import_path
from finetune.models import torchvision_models
from finetune.models.custom.code_trust import check_stored_code, is_torchvision_network
from finetune.models.custom.custom_network import create_custom_network
from finetune.models.mlp_head import MlpSettings, attach_mlp_head

torchvision_models.register()

_OTHER_WEIGHTS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip
"""Arguments of ``timm.create_model`` that no card has: they read or download files."""


def build_stored_network(
    card: ModelCard, state: Mapping[str, torch.Tensor], folder: Path
) -> nn.Module:
    """Return the network of a card with its weights.

    Args:
        card: Model card; it may name code of the user, which is imported if the user trusts it, see
            ``check_stored_code``.
        state: Weights.
        folder: Folder of the model, which no code is imported from.

    Raises:
        ModelError: timm does not know the backbone, it cannot be imported, or is not trusted.
        ValueError: The weights are not those of such a network, or the arguments name other files.
    """
    other_weights = _OTHER_WEIGHTS | (
        {"weights", "weights_backbone"} if is_torchvision_network(card.backbone) else set()
    )
    if reserved := other_weights & card.model_args.keys():
        raise ValueError(f"model_args has {', '.join(sorted(reserved))}, which load other weights")
    check_num_classes(state, len(card.classes))
    if is_import_path(card.backbone):
        check_stored_code(card.backbone, folder)
        network = create_custom_network(
            card.backbone,
            num_classes=len(card.classes),
            arguments=card.model_args,
            image_size=card.spec.input_size[-1],
        )
    elif timm.is_model(card.backbone.partition(".")[0]):
        network = timm.create_model(card.backbone, num_classes=len(card.classes), **card.model_args)
    else:
        raise ModelError(
            f"Backbone '{card.backbone}' is unknown to timm {timm.__version__}. Upgrade timm."
        )
    if card.head is not None:
        attach_mlp_head(network, MlpSettings.from_json(card.head))
    check_state(state, network)
    network.load_state_dict(state)
    return network.eval()
