"""Network of a model card, built again for its stored weights."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import nn

from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.lookup import is_import_path
from finetune.models import torchvision_models
from finetune.models.custom.code_import import check_import_is_outside
from finetune.models.custom.custom_network import create_custom_network
from finetune.models.mlp_head import MlpSettings, attach_mlp_head

torchvision_models.register()


def build_stored_network(
    card: ModelCard, state: Mapping[str, torch.Tensor], folder: Path
) -> nn.Module:
    """Return the network of a card with its weights.

    Args:
        card: Model card; it may name code of the user, which is imported from where Python finds
            it, but not from the model's own folder.
        state: Weights.
        folder: Folder of the model.

    Raises:
        ModelError: timm does not know the backbone, or it cannot be imported.
    """
    if is_import_path(card.backbone):
        check_import_is_outside(card.backbone, folder)
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
    network.load_state_dict(state)
    return network.eval()
