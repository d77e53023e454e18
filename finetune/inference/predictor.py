"""Class probabilities of image files, with the preprocessing of the model's card."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.data.dataset import (
    ImageDataset,
    ReadableDataset,
    create_loader,
    translate_worker_errors,
)
from finetune.data.images.source import FileSource
from finetune.data.transforms.eval_transform import EvalTransform, FlipPairTransform, Transform
from finetune.errors import ConfigError
from finetune.models.classifier import normalise
from finetune.types import DEFAULT_READ_OPTIONS, Prediction, ReadOptions


class Predictor:
    """Predictor of image files in float32.

    Args:
        bundle: Model with its card.
        device: Device, such as "cpu" or "cuda"; None for a GPU if there is one.
        batch_size: Images per batch.
        num_workers: Number of worker processes; 0 reads in this process.
        options: How image files are read; their range of values is that of the card.
        tta: Whether to average the probabilities of each image and its horizontal flip (test-time
            augmentation). Both pass through the network in turn, so that no more memory is used.

    Raises:
        ConfigError: ``tta`` is set, but the model was not trained on flipped images.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        device: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
        tta: bool = False,
    ) -> None:
        if tta:
            check_tta(bundle.card)
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        self.card = bundle.card
        self.network = bundle.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.eval()
        single = EvalTransform(bundle.card.spec)
        self.transform: Transform = FlipPairTransform(single) if tta else single
        self.num_views = 2 if tta else 1
        self._logit_shift = None if bundle.card.shift is None else torch.tensor(bundle.card.shift)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.options = replace(options, pixel_range=bundle.card.pixel_range)

    def predict_logits(
        self,
        paths: Sequence[Path],
        *,
        on_batch: Callable[[int], None] | None = None,
        unreadable: MutableMapping[int, str] | None = None,
    ) -> Tensor:
        """Return the uncalibrated logits, float32, shape (N, V, K), in the order of ``paths``.

        V is the number of views of an image: 1, or 2 with ``tta``.

        Args:
            paths: Image files, shape (N,).
            on_batch: Callback that receives the number of images of each finished batch.
            unreadable: Receives the rows of files that cannot be read, with their reasons; their
                logits have no meaning. None raises at the first one.

        Raises:
            DataError: A file cannot be read.
        """
        batches = [logits for logits, _ in self._iterate_logits(paths, on_batch, unreadable)]
        shape = (0, self.num_views, len(self.card.classes))
        return torch.cat(batches) if batches else torch.empty(shape)

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities, shape (N, K), for logits, shape (N, V, K): the mean of views.

        The logits of each view are first calibrated and then adjusted to the card's target prior
        (Alexandari et al. 2020, https://arxiv.org/abs/1901.06852).
        """
        scaled = logits / self.card.temperature
        if self._logit_shift is not None:
            scaled = scaled + self._logit_shift
        return scaled.softmax(dim=2).mean(dim=1)

    def predict_proba(
        self, paths: Sequence[Path], *, on_batch: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return class probabilities, float32, shape (N, K), in the order of ``paths``.

        Args:
            paths: Image files, shape (N,).
            on_batch: Callback that receives the number of images of each finished batch.

        Raises:
            DataError: A file cannot be read.
        """
        return self.compute_probabilities(self.predict_logits(paths, on_batch=on_batch))

    def predict(
        self,
        paths: Sequence[Path],
        *,
        top_k: int = 1,
        on_batch: Callable[[int], None] | None = None,
        unreadable: MutableMapping[int, str] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the ``top_k`` most probable classes of each image, in the order of ``paths``.

        Args:
            paths: Image files, shape (N,).
            top_k: Number of classes, at most all of them.
            on_batch: Callback that receives the number of images of each finished batch.
            unreadable: Receives the rows of files that cannot be read, with their reasons; they
                are passed over. None raises at the first one.

        Raises:
            DataError: A file cannot be read.
        """
        top_k = min(top_k, len(self.card.classes))
        for logits, rows in self._iterate_logits(paths, on_batch, unreadable):
            values, indices = self.compute_probabilities(logits).topk(top_k, dim=1)
            for row, value, columns in zip(rows, values.tolist(), indices.tolist(), strict=True):
                if unreadable is None or row not in unreadable:
                    labels = tuple(self.card.classes[column] for column in columns)
                    yield Prediction(str(paths[row]), labels, tuple(value))

    def _iterate_logits(
        self,
        paths: Sequence[Path],
        on_batch: Callable[[int], None] | None,
        unreadable: MutableMapping[int, str] | None,
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield the logits of each batch, shape (B, V, K), and its rows."""
        source = FileSource(paths, options=self.options)
        dataset_type = ImageDataset if unreadable is None else ReadableDataset
        dataset = dataset_type(source, None, self.transform)
        loader = create_loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        with translate_worker_errors():
            for batch in loader:
                views = batch["image"].chunk(self.num_views, dim=1)
                if unreadable is not None:
                    unreadable.update(batch.get("reasons", {}))
                logits = torch.stack([self._compute_logits(view) for view in views], dim=1)
                yield logits, batch["index"].tolist()
                if on_batch is not None:
                    on_batch(len(batch["image"]))

    def _compute_logits(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, K), on the CPU, for pixels, uint8, shape (B, H, W, C)."""
        spec = self.card.spec
        with torch.inference_mode():
            pixels = normalise(images.to(self.device), mean=spec.mean, std=spec.std)
            logits: Tensor = self.network(pixels).float().cpu()
        return logits


def check_tta(card: ModelCard) -> None:
    """Check that a model was trained on horizontally flipped images, which ``--tta`` requires.

    Raises:
        ConfigError: It was not, or its card does not record it.
    """
    if card.facts.get("flipped"):
        return
    if "flipped" not in card.facts:
        raise ConfigError(
            "--tta cannot apply: the model was written by an older finetune, which did not record "
            "whether it was trained on flipped images. Remove --tta, or train the model again."
        )
    raise ConfigError(
        f"--tta cannot apply to a model trained with {card.facts['flipped_by']}: it was not "
        f"trained on flipped images, and a flip may change a class. Remove --tta, or train with "
        f"flips if they do not."
    )
