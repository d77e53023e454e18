"""Class probabilities of images, through the preprocessing that the model was measured with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.bundle import ModelBundle
from finetune.data.dataset import ImageDataset, create_loader, lost_readers_explained
from finetune.data.decode import DEFAULT_MAX_PIXELS
from finetune.data.source import FileSource
from finetune.data.transform import EvalTransform
from finetune.models.classifier import normalise
from finetune.types import Prediction


class Predictor:
    """Runs a model over image files, in float32.

    Args:
        bundle: The model.
        device: "cpu", "cuda" …; None takes a GPU where there is one.
        batch_size: Images at once.
        num_workers: Reading processes; 0 reads in this one.
        max_pixels: Larger images are refused.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        device: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        self.card = bundle.card
        self.network = bundle.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.eval()
        self.transform = EvalTransform(bundle.card.spec)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_pixels = max_pixels

    def probabilities(
        self, paths: Sequence[Path], *, on_batch: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return class probabilities, float32, shape (N, K), in the order of ``paths``.

        Raises:
            DataError: A file cannot be read.
        """
        batches = list(self._batches(paths, on_batch))
        return torch.cat(batches) if batches else torch.empty(0, len(self.card.classes))

    def predict(
        self,
        paths: Sequence[Path],
        *,
        top_k: int = 1,
        on_batch: Callable[[int], None] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the ``top_k`` most probable classes of each image, in the order of ``paths``.

        Raises:
            DataError: A file cannot be read.
        """
        files = iter(paths)
        top_k = min(top_k, len(self.card.classes))
        for batch in self._batches(paths, on_batch):
            values, indices = batch.topk(top_k, dim=1)
            for row, columns in zip(values.tolist(), indices.tolist(), strict=True):
                labels = tuple(self.card.classes[column] for column in columns)
                yield Prediction(str(next(files)), labels, tuple(row))

    def _batches(
        self, paths: Sequence[Path], on_batch: Callable[[int], None] | None
    ) -> Iterator[Tensor]:
        source = FileSource(paths, max_pixels=self.max_pixels)
        dataset = ImageDataset(source, None, self.transform)
        loader = create_loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        spec = self.card.spec
        with lost_readers_explained():
            for batch in loader:
                with torch.inference_mode():
                    pixels = normalise(batch["image"].to(self.device), mean=spec.mean, std=spec.std)
                    yield self.network(pixels).softmax(dim=1).cpu()
                if on_batch is not None:
                    on_batch(len(batch["image"]))
