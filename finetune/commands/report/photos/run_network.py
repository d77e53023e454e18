"""Network of a run, and its input from image files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.model_card import ModelCard
from finetune.config.schema import Config
from finetune.data.images.decode import open_image
from finetune.data.images.resample import Pixels
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError
from finetune.models.classifier import normalise
from finetune.system.hardware import resolve_accelerator
from finetune.system.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class RunNetwork:
    """Network of a run in eval mode.

    Attributes:
        bundle: Model of the run; of an ensemble all members.
        network: Network from normalised images (B, C, H, W) to logits (B, K).
        card: Its card.
        device: Its device.
        is_member: Whether it is the first member of an ensemble.
    """

    bundle: ModelBundle
    network: nn.Module
    card: ModelCard
    device: torch.device
    is_member: bool = False

    def read_pixels(self, path: Path) -> Pixels | None:
        """Return what the network sees of an image, (H, W, C); None for a file that is damaged."""
        try:
            image = open_image(path, options=self.card.read_options)
            return EvalTransform(self.card.spec)(image).pixels
        except (DataError, MemoryError):
            return None

    def prepare(self, pixels: Sequence[Pixels]) -> Tensor:
        """Return the normalised input of images on the device, shape (B, C, H, W)."""
        batch = torch.stack([torch.from_numpy(one) for one in pixels]).to(self.device)
        return normalise(batch, mean=self.card.spec.mean, std=self.card.spec.std)

    @contextmanager
    def capture_features(self) -> Iterator[list[Tensor]]:
        """Collect the input of the classifier within the block, one (B, D) per forward pass."""
        classifier = self.network.get_classifier()  # type: ignore[operator]
        if isinstance(classifier, tuple | list):
            classifier = classifier[0]
        found: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].float()
            if features.ndim == 4:
                features = features.mean((2, 3))
            found.append(features.flatten(1).cpu())

        handle = classifier.register_forward_pre_hook(keep)
        try:
            yield found
        finally:
            handle.remove()


def load_run_network(run: RunFolder, config: Config) -> RunNetwork:
    """Return the network of a run; of an ensemble its first member.

    Raises:
        RunFolderError: There is no model, or it is damaged.
    """
    bundle = load_model(run.path)
    model = bundle.members[0] if bundle.members else bundle
    device = torch.device(resolve_accelerator(config.trainer.accelerator))
    network = model.network.to(device)
    network.eval()
    return RunNetwork(bundle, network, model.card, device, is_member=bool(bundle.members))
