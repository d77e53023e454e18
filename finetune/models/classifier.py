"""Image classifier with freezing by layer group, eval-mode context, and input normalisation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.models.layer_groups import assign_module_groups, find_layer_groups

BatchNormMode = Literal["frozen", "train"]


class ImageClassifier(nn.Module):
    """timm network of which the first ``depth`` layer groups, counted from the head, train.

    A frozen group has ``requires_grad=False``, no gradients, and stays in eval mode whatever
    ``train()`` is called with, so that neither its BatchNorm statistics nor its dropout are active.

    Args:
        network: Module from normalised images (B, 3, H, W) to logits (B, K).
        batch_norm: "frozen" keeps the BatchNorm statistics of trained groups, too; "train" updates
            them.

    Attributes:
        groups: Layer groups, from the head to the stem.
        depth: Number of layer groups that train, counted from the head.
    """

    def __init__(self, network: nn.Module, *, batch_norm: BatchNormMode = "frozen") -> None:
        super().__init__()
        self.network = network
        self.batch_norm = batch_norm
        self.groups = find_layer_groups(network)
        self._module_groups = assign_module_groups(network, self.groups)
        self.depth = len(self.groups)
        self._train_forward: Callable[[Tensor], Tensor] | None = None

    @property
    def has_batch_norm(self) -> bool:
        """Whether any layer is a BatchNorm."""
        return has_batch_norm(self.network)

    def set_depth(self, depth: int) -> None:
        """Unfreeze the first ``depth`` groups (1: the head alone), freeze the others; idempotent.

        Raises:
            ValueError: ``depth`` is not in [1, number of groups].
        """
        if not 1 <= depth <= len(self.groups):
            raise ValueError(f"depth {depth} is not in [1, {len(self.groups)}]")
        self.depth = depth
        parameters = dict(self.network.named_parameters())
        for index, group in enumerate(self.groups):
            for name in group.parameter_names:
                parameters[name].requires_grad_(index < depth)
                if index >= depth:
                    parameters[name].grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set train mode in the groups that train; frozen groups stay in eval mode."""
        super().train(mode)
        if not mode:
            return self
        for name, module in self.network.named_modules():
            if name == "":
                continue
            is_frozen = min(self._module_groups[name]) >= self.depth
            if is_frozen or (self.batch_norm == "frozen" and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of normalised images (B, 3, H, W)."""
        if self.training and self._train_forward is not None:
            return self._train_forward(images)
        logits: Tensor = self.network(images)
        return logits

    def compile_for_training(self, example: Tensor) -> str | None:
        """Compile the network for training batches; return the error if that fails, else None.

        The compiled network computes the same up to rounding. Parameters, statistics and the keys
        of the state dict stay as they are.

        Args:
            example: Normalised images (B, 3, H, W) of a training batch, on the network's device.
        """
        object.__setattr__(self, "_train_forward", None)
        buffers = {name: tensor.clone() for name, tensor in self.network.named_buffers()}
        compiled = torch.compile(self.network)
        try:
            with torch.random.fork_rng([example.device] if example.is_cuda else []):
                compiled(example).float().sum().backward()
        except Exception as error:  # compilers and drivers raise errors of any type
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        finally:
            self.network.zero_grad()
            with torch.no_grad():
                for name, tensor in self.network.named_buffers():
                    tensor.copy_(buffers[name])
        # a plain attribute: a submodule would rename every key of the state dict
        object.__setattr__(self, "_train_forward", compiled)
        return None


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether any layer of a network is a BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set eval mode within the block, and restore each layer's mode after it.

    Restored one by one, since Lightning trains in the mode that it finds.
    """
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def preserve_state(classifier: ImageClassifier) -> Iterator[dict[str, Tensor]]:
    """Restore weights, statistics, depth and the mode of each layer after the block.

    Yields:
        Copies of the parameters and buffers, by state-dict name.
    """
    depth = classifier.depth
    modes = {layer: layer.training for layer in classifier.modules()}
    state = {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
    try:
        yield state
    finally:
        classifier.load_state_dict(state)
        for parameter in classifier.parameters():
            parameter.grad = None
        classifier.set_depth(depth)
        for layer, mode in modes.items():
            layer.training = mode


def normalise(
    images: Tensor,
    *,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    color_matrix: Tensor | None = None,
) -> Tensor:
    """Return the normalised input of a network from a batch of pixels.

    Args:
        images: Pixels, uint8 or uint16, shape (B, H, W, C).
        mean: Mean per channel, for pixels in [0, 1]; a tensor on the images' device saves a copy.
        std: Standard deviation per channel, for pixels in [0, 1].
        color_matrix: Colour transform before normalisation, shape (B, C, C + 1): a matrix and a
            shift for pixels in [0, 1], which are clipped afterwards.

    Returns:
        float32, shape (B, C, H, W), in the channels-last memory format.
    """
    pixels = images.float().div_(65_535 if images.dtype == torch.uint16 else 255)
    if color_matrix is not None:
        pixels = _apply_color_matrix(pixels, color_matrix)
    shift = torch.as_tensor(mean, device=images.device)
    scale = torch.as_tensor(std, device=images.device)
    return pixels.sub_(shift).div_(scale).permute(0, 3, 1, 2)


def _apply_color_matrix(pixels: Tensor, color_matrix: Tensor) -> Tensor:
    """Return pixels (B, H, W, C) after each image's colour transform, clipped to [0, 1]."""
    batch, _, _, channels = pixels.shape
    with torch.autocast(pixels.device.type, enabled=False):  # bf16 resolves less than 8 bits
        transformed = torch.baddbmm(
            color_matrix[:, None, :, channels],
            pixels.view(batch, -1, channels),
            color_matrix[:, :, :channels].transpose(1, 2),
        )
    return transformed.clamp_(0, 1).view_as(pixels)
