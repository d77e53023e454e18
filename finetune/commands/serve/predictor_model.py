"""A predictor as the model of a server."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.runtimes.runtime_models import is_exported_network
from finetune.commands.predict.prediction_row import RowFormat, prediction_to_json
from finetune.commands.saliency.overlays import join_pictures
from finetune.data.images.source import MemorySource
from finetune.errors import DataError
from finetune.inference.label_scoring import predict_labels
from finetune.inference.predictor import Predictor
from finetune.saliency.deletion import NUM_RANDOM_MAPS, NUM_STEPS
from finetune.saliency.file_saliency import (
    ENSEMBLE_REASON,
    compute_file_saliency,
    draw_overlay,
    draw_photo,
)
from finetune.server.served_model import ModelFacts, SaliencyPicture, SamplePhoto, Upload
from finetune.types import DEFAULT_READ_OPTIONS, Prediction
from finetune.units import format_duration

_NUM_SALIENCY_PASSES = (1 + NUM_RANDOM_MAPS) * NUM_STEPS
"""Forward passes of the test of a saliency map."""

_NUM_TIMED_BATCHES = 3


class PredictorModel:
    """Model of a server, which predicts by the code of ``finetune predict``.

    Args:
        predictor: Predictor.
        facts: Description for clients.
        samples: Photos that the page offers.
        saliency_bundle: Model whose layers saliency maps are made from; None if there is none.
        max_saliency_seconds: Time above which saliency maps are too slow to be offered.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        facts: ModelFacts,
        samples: Sequence[SamplePhoto] = (),
        saliency_bundle: ModelBundle | None = None,
        max_saliency_seconds: float = 30.0,
    ) -> None:
        self._predictor = predictor
        self.facts = facts
        self.samples = samples
        self._saliency_bundle = saliency_bundle
        self._max_saliency_seconds = max_saliency_seconds
        self._own_bundle: ModelBundle | None = None
        self.saliency_reason = _explain_missing_saliency(saliency_bundle)

    def decode(self, upload: Upload) -> list[Tensor]:
        """Return the views of an image, pixels of shape (H, W, C).

        Raises:
            DataError: The image cannot be read; the message is the reason.
        """
        return self._predictor.load_views(_open(upload), 0)

    def compute(self, inputs: Sequence[list[Tensor]]) -> list[list[float]]:
        """Return the probabilities of decoded images, shape (B, K)."""
        if self._predictor.takes_photos and len(inputs) > 1:  # whole photos differ in size
            return [self.compute([views])[0] for views in inputs]
        batches = [torch.stack(views) for views in zip(*inputs, strict=True)]
        logits = self._predictor.compute_logits(batches)
        rows: list[list[float]] = self._predictor.compute_probabilities(logits).tolist()
        return rows

    def describe(
        self, name: str, probabilities: Sequence[float], *, top_k: int, has_all: bool
    ) -> dict[str, Any]:
        """Return a prediction as ``finetune predict --json`` does."""
        card = self._predictor.card
        form = RowFormat(card.classes, is_multi_label=card.is_multi_label)
        every = tuple(probabilities) if has_all or card.is_multi_label else None
        if card.is_multi_label:
            prediction = predict_labels(name, probabilities, card)
        else:
            ranked = sorted(zip(probabilities, card.classes, strict=True), key=lambda p: -p[0])
            values, labels = zip(*ranked[:top_k], strict=True)
            prediction = Prediction(name, labels, values, every)
        tree = prediction_to_json(prediction, form)
        return {"name": tree.pop("path"), **tree}

    def draw_saliency(self, upload: Upload) -> SaliencyPicture:
        """Return the input of the network beside its saliency map, if that can be trusted.

        Raises:
            DataError: The image cannot be read; the message is the reason.
        """
        bundle = self._copy_network()
        found = compute_file_saliency(
            bundle,
            _open(upload),
            device=self._predictor.device,
            options=self._predictor.options,
        )
        if found.unreadable:
            raise DataError(found.unreadable[0])
        (result,) = found.maps.results
        label = "" if result is None else bundle.card.classes[result.target]
        if result is None or not result.is_trusted:
            return SaliencyPicture(label, reason=found.maps.reason or found.maps.describe())
        (pixels,) = found.pixels
        picture = join_pictures(draw_photo(pixels), draw_overlay(pixels, result.map))
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        return SaliencyPicture(label, buffer.getvalue())

    def measure_seconds(self, batch_size: int) -> float:
        """Run the network on black images, as the first batches are slow; return a batch's seconds.

        Saliency maps are not offered from then on if they would be too slow.

        Args:
            batch_size: Images of a batch.
        """
        views = self._predictor.create_black_views()
        self.compute([views])
        start = time.monotonic()
        self.compute([views])
        single_seconds = time.monotonic() - start
        seconds = _NUM_SALIENCY_PASSES * single_seconds
        if not self.saliency_reason and seconds > self._max_saliency_seconds:
            self.saliency_reason = (
                f"A saliency map would take {format_duration(seconds)}, longer than the server's "
                f"time limit."
            )
        batch = [views] * batch_size
        self.compute(batch)
        start = time.monotonic()
        for _ in range(_NUM_TIMED_BATCHES):
            self.compute(batch)
        return (time.monotonic() - start) / _NUM_TIMED_BATCHES

    def _copy_network(self) -> ModelBundle:
        """Return a copy of the network: hooks of a map must not see the batches of others."""
        assert self._saliency_bundle is not None, "checked by saliency_reason"
        if self._own_bundle is None:
            network = copy.deepcopy(self._saliency_bundle.network)
            self._own_bundle = replace(self._saliency_bundle, network=network)
        return self._own_bundle


def _open(upload: Upload) -> MemorySource:
    return MemorySource([upload.content], [upload.name], DEFAULT_READ_OPTIONS)


def _explain_missing_saliency(bundle: ModelBundle | None) -> str:
    if bundle is None or any(
        is_exported_network(member.network) for member in bundle.members or (bundle,)
    ):
        return "The runtime of this model computes no gradients, which saliency maps need."
    if bundle.members:
        return ENSEMBLE_REASON
    return ""
