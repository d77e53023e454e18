"""Features of images in the same pass through the network that gives their probabilities."""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.errors import ModelError
from finetune.inference.predictor import Images, Predictor
from finetune.models.pre_logits import CapturedFeatures, capture_features, find_classifiers


def has_features(bundle: ModelBundle) -> bool:
    """Return whether a model is one network that names the classifier after its features."""
    return not bundle.members and bool(find_classifiers(bundle.network))


def check_features(bundle: ModelBundle, *, option: str) -> None:
    """Check that a model is one network whose features can be read.

    Args:
        bundle: Model.
        option: Option that needs the features, for the message.

    Raises:
        ModelError: It is an ensemble, or a model of another runtime that gives logits alone.
    """
    if bundle.members:
        paths = ", ".join(str(member.source) for member in bundle.members[:3])
        more = ", …" if len(bundle.members) > 3 else ""
        raise ModelError(
            f"{option} needs the features of one network, and this is the mean of "
            f"{len(bundle.members)} models. Name one of them: {paths}{more}"
        )
    if not find_classifiers(bundle.network):
        raise ModelError(
            f"{option} needs the features before the classifier, and {bundle.source} gives class "
            f"scores alone. Name the run or the bundle that it was exported from."
        )


@contextmanager
def capture_model_features(bundle: ModelBundle, *, option: str) -> Iterator[CapturedFeatures]:
    """Capture the features of one network while a ``Predictor`` of it runs within the block.

    After each batch, ``pop`` returns those of its images, shape (B, D): with test-time augmentation
    the mean of the features of their views.

    Raises:
        ModelError: The model has no features, see ``check_features``.
    """
    check_features(bundle, option=option)
    with capture_features(bundle.network) as captured:
        yield captured


def predict_features(
    bundle: ModelBundle,
    predictor: Predictor,
    images: Images,
    *,
    option: str,
    on_batch: Callable[[int], None] | None = None,
    unreadable: MutableMapping[int, str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V, K) and the features (N, D) of images, float32, on the CPU.

    Args:
        bundle: Model of the predictor.
        predictor: Predictor of one network.
        images: Image files, shape (N,), or their source.
        option: Option that needs the features, for messages.
        on_batch: Callback that receives the number of images of each finished batch.
        unreadable: Receives the rows of images that cannot be read, as for ``predict_logits``.

    Raises:
        DataError: An image cannot be read.
        ModelError: The model has no features.
    """
    batches: list[Tensor] = []
    with capture_model_features(bundle, option=option) as captured:

        def keep(num_images: int) -> None:
            batches.append(captured.pop().cpu())
            if on_batch is not None:
                on_batch(num_images)

        logits = predictor.predict_logits(images, on_batch=keep, unreadable=unreadable)
    return logits, torch.cat(batches) if batches else torch.empty(0, 0)
