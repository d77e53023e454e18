"""The network of a run, and what it keeps for the backward pass."""

from dataclasses import replace

from finetune.bundle.model_card import ModelCard
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.errors import ConfigError
from finetune.models.backbone import Network, create_network
from finetune.models.classifier import ImageClassifier
from finetune.types import LoadReport


def build_network(config: Config, manifest: Manifest, checkpoint_card: ModelCard | None) -> Network:
    """Return the backbone with its weights, or with room for those of the checkpoint.

    Args:
        config: What was asked for.
        manifest: The images.
        checkpoint_card: The card of the checkpoint that will fill it.

    Raises:
        ModelError: The backbone or its weights.
    """
    size = config.data.image_size
    network = create_network(
        config.model.backbone,
        num_classes=len(manifest.classes),
        weights="random" if checkpoint_card else config.model.weights,
        image_size=None if size == "auto" else size,
        drop_rate=config.model.drop_rate,
        kwargs=config.model.kwargs,
        pretrained_cfg=config.model.pretrained_cfg,
        seed=config.seed,
    )
    if checkpoint_card is None:
        return network
    report = LoadReport(str(checkpoint_card.facts["weights"]), 0, 0)
    return replace(network, spec=checkpoint_card.spec, report=report)


def enable_grad_checkpointing(config: Config, classifier: ImageClassifier) -> None:
    """Let the network compute activations again in the backward pass.

    Raises:
        ConfigError: It cannot, or would count each batch twice in its BatchNorm statistics.
    """
    if classifier.batch_norm == "train" and classifier.has_batch_norm:
        raise ConfigError(
            f"model.grad_checkpointing cannot apply with model.batch_norm="
            f"{config.model.batch_norm}: computed twice, each batch would enter the statistics "
            f"twice. Use model.batch_norm=frozen."
        )
    try:
        classifier.network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.grad_checkpointing: '{config.model.backbone}' does not support it. Use "
            f"trainer.accumulate_grad_batches to save memory."
        ) from error
