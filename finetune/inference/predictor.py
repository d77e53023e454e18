"""Class probabilities of images, with the preprocessing of the model's card."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.bundle.bundle import ModelBundle
from finetune.data.dataset import (
    Batch,
    ImageDataset,
    ReadableDataset,
    create_loader,
    load_view,
    translate_worker_errors,
)
from finetune.data.images.source import EncodedSource, FileSource
from finetune.data.transforms.view_stack import ViewStack, build_view_stack
from finetune.inference.input_checks import check_views
from finetune.inference.label_scoring import predict_labels
from finetune.inference.member import Member, build_member, compute_view_mean
from finetune.inference.tta import parse_tta
from finetune.inference.whole_photos import build_photo_stack, takes_photos
from finetune.models.classifier import normalise
from finetune.types import DEFAULT_READ_OPTIONS, Prediction, ReadOptions, Tta

Images = Sequence[Path] | EncodedSource
"""Image files, or a source of N images such as ``MemorySource``."""


class Predictor:
    """Predictor of images, in files or in memory, in float32.

    The members of an ensemble see the same views, as far as their preprocessing is the same, and
    each file is decoded once, unless their cards differ in its channels or range of values.

    Attributes:
        takes_photos: Whether the networks take whole photos, whose sizes differ, one at a time.

    Args:
        bundle: Model with its card, or an ensemble.
        device: Device, such as "cpu" or "cuda"; None for a GPU if there is one.
        batch_size: Images per batch.
        num_workers: Number of worker processes; 0 reads in this process.
        options: Largest image that is read; channels and range of values are those of the card.
        tta: Test-time augmentation: views of each image whose probabilities are averaged; True is
            "hflip". They pass through the network in turn, so that no more memory is used there.

    Raises:
        ConfigError: The model was not trained on flipped images that ``tta`` needs, or does not
            accept images of other sizes.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        device: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
        tta: Tta | str | bool = Tta.NONE,
    ) -> None:
        self.tta = parse_tta(tta)
        check_views(bundle, self.tta)
        self.takes_photos = takes_photos(bundle)
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        self.card = bundle.card
        self.network = bundle.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.eval()
        models = bundle.members or (bundle,)
        self._stacks: dict[ReadOptions, ViewStack] = {}
        views: dict[int, range] = {}
        for read_options in dict.fromkeys(model.card.read_options for model in models):
            rows = [r for r, m in enumerate(models) if m.card.read_options == read_options]
            specs = [models[row].card.spec for row in rows]
            self._stacks[read_options], ranges = (
                build_photo_stack([models[row] for row in rows])
                if self.takes_photos
                else build_view_stack(specs, self.tta)
            )
            views.update(zip(rows, ranges, strict=True))
        self._members: list[Member] = []
        for row, (model, weight) in enumerate(zip(models, bundle.weights or (1.0,), strict=True)):
            member = build_member(
                model, weight, views[row], first=self.num_views, classes=bundle.card.classes
            )
            self._members.append(member)
        self.batch_size = 1 if self.takes_photos else batch_size
        self.num_workers = num_workers
        self.options = options

    @property
    def num_views(self) -> int:
        """Number V of the logits of an image: one for each view and member."""
        return sum(len(member.logits) for member in self._members)

    def predict_logits(
        self,
        images: Images,
        *,
        on_batch: Callable[[int], None] | None = None,
        unreadable: MutableMapping[int, str] | None = None,
    ) -> Tensor:
        """Return the uncalibrated logits, float32, shape (N, V, K), in the order of ``images``.

        V is the number of views of an image, such as 1 or, with ``tta="hflip"``, 2; those of the
        members of an ensemble follow each other.

        Args:
            images: Image files, shape (N,), or their source.
            on_batch: Callback that receives the number of images of each finished batch.
            unreadable: Receives the rows of images that cannot be read, with their reasons; their
                logits have no meaning. None raises at the first one.

        Raises:
            DataError: An image cannot be read.
        """
        batches = [
            logits for logits, _ in self._iterate_logits(_to_source(images), on_batch, unreadable)
        ]
        shape = (0, self.num_views, len(self.card.classes))
        return torch.cat(batches) if batches else torch.empty(shape)

    def load_views(self, source: EncodedSource, row: int) -> list[Tensor]:
        """Return the views of one image, for batches that the caller makes; threads may call it.

        Returns:
            Pixels, uint8 or uint16, shape (H, W, C), for each way in which members read images.

        Raises:
            DataError: The image cannot be read; the message is the reason without its name.
        """
        return [
            torch.from_numpy(load_view(self._set_options(source, o), row, s.transform, None).pixels)
            for o, s in self._stacks.items()
        ]

    def create_black_views(self) -> list[Tensor]:
        """Return the views of a black image, as of ``load_views``, to time the network."""
        return [
            torch.zeros(
                (*stack.transform.get_size(0), options.num_channels),
                dtype=torch.uint8 if options.bit_depth == 8 else torch.uint16,
            )
            for options, stack in self._stacks.items()
        ]

    def compute_logits(self, batches: Sequence[Tensor]) -> Tensor:
        """Return the uncalibrated logits of a batch of images, shape (B, V, K).

        Args:
            batches: Views as of ``load_views``, each of shape (B, H, W, C).
        """
        images = {
            read_options: [
                pixels[:, top : top + height, :width] for top, height, width in stack.boxes
            ]
            for pixels, (read_options, stack) in zip(batches, self._stacks.items(), strict=True)
        }
        logits = [
            self._compute_member_logits(images[member.card.read_options][view], member)
            for member in self._members
            for view in member.views
        ]
        return torch.stack(logits, dim=1)

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities, shape (N, K), for logits, shape (N, V, K): the mean of views.

        The logits of each view are first calibrated and then adjusted to the target prior of its
        member's card (Alexandari et al. 2020, https://arxiv.org/abs/1901.06852). Members count by
        their weights, and the views of a member alike.
        """
        members = self.compute_member_probabilities(logits)
        if len(self._members) == 1:
            return members[0]
        weights = torch.tensor([member.weight for member in self._members], dtype=members.dtype)
        return torch.einsum("mnk,m->nk", members, weights)

    def compute_member_probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of each member M, shape (M, N, K), for logits, (N, V, K)."""
        if len(self._members) == 1:
            return compute_view_mean(logits, self._members[0])[None]
        return torch.stack(
            [compute_view_mean(logits[:, m.logits.start : m.logits.stop], m) for m in self._members]
        )

    def predict_proba(
        self, images: Images, *, on_batch: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return class probabilities, float32, shape (N, K), in the order of ``images``.

        Args:
            images: Image files, shape (N,), or their source.
            on_batch: Callback that receives the number of images of each finished batch.

        Raises:
            DataError: An image cannot be read.
        """
        return self.compute_probabilities(self.predict_logits(images, on_batch=on_batch))

    def predict(
        self,
        images: Images,
        *,
        top_k: int = 1,
        on_batch: Callable[[int], None] | None = None,
        unreadable: MutableMapping[int, str] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the ``top_k`` most probable classes of each image, in the order of ``images``.

        A multi-label model yields the labels whose probabilities reach their thresholds.

        Args:
            images: Image files, shape (N,), or their source.
            top_k: Number of classes, at most all of them.
            on_batch: Callback that receives the number of images of each finished batch.
            unreadable: Receives the rows of images that cannot be read, with their reasons; they
                are passed over. None raises at the first one.

        Raises:
            DataError: An image cannot be read.
        """
        top_k = min(top_k, len(self.card.classes))
        source = _to_source(images)
        for logits, rows in self._iterate_logits(source, on_batch, unreadable):
            probabilities = self.compute_probabilities(logits)
            if self.card.thresholds is not None:
                own = zip(rows, probabilities.tolist(), strict=True)
                yield from (
                    predict_labels(source.get_name(row), values, self.card)
                    for row, values in own
                    if unreadable is None or row not in unreadable
                )
                continue
            values, indices = probabilities.topk(top_k, dim=1)
            for row, value, columns in zip(rows, values.tolist(), indices.tolist(), strict=True):
                if unreadable is None or row not in unreadable:
                    labels = tuple(self.card.classes[column] for column in columns)
                    yield Prediction(source.get_name(row), labels, tuple(value))

    def _iterate_logits(
        self,
        source: EncodedSource,
        on_batch: Callable[[int], None] | None,
        unreadable: MutableMapping[int, str] | None,
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield the logits of each batch, shape (B, V, K), and its rows."""
        loaders = [
            self._create_loader(
                source, read_options, stack, skips_unreadable=unreadable is not None
            )
            for read_options, stack in self._stacks.items()
        ]
        with translate_worker_errors():
            for batches in zip(*loaders, strict=True):
                if unreadable is not None:
                    for batch in batches:
                        unreadable.update(batch.get("reasons", {}))
                logits = self.compute_logits([batch["image"] for batch in batches])
                yield logits, batches[0]["index"].tolist()
                if on_batch is not None:
                    on_batch(len(batches[0]["image"]))

    def _create_loader(
        self,
        source: EncodedSource,
        read_options: ReadOptions,
        stack: ViewStack,
        *,
        skips_unreadable: bool,
    ) -> DataLoader[Batch]:
        """Return the loader of the views of all images."""
        dataset_type = ReadableDataset if skips_unreadable else ImageDataset
        dataset = dataset_type(self._set_options(source, read_options), None, stack.transform)
        if isinstance(dataset, ReadableDataset):
            dataset.num_channels = read_options.num_channels
        return create_loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _set_options(self, source: EncodedSource, read_options: ReadOptions) -> EncodedSource:
        return source.replace_options(replace(read_options, max_pixels=self.options.max_pixels))

    def _compute_member_logits(self, images: Tensor, member: Member) -> Tensor:
        """Return a member's logits, shape (B, K), on the CPU, for pixels, uint8, (B, H, W, C)."""
        spec = member.card.spec
        with torch.inference_mode():
            pixels = images
            if not self.takes_photos:
                pixels = normalise(images.to(self.device), mean=spec.mean, std=spec.std)
            logits: Tensor = member.network(pixels).float().cpu()
        return logits if member.order is None else logits[:, member.order]


def _to_source(images: Images) -> EncodedSource:
    return FileSource(images) if isinstance(images, Sequence) else images
