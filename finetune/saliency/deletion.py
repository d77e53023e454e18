"""Deletion scores of saliency maps, and random maps to compare them with.

Petsiuk et al. 2018 (RISE, https://arxiv.org/abs/1806.07421): pixels are replaced by the mean colour
in the order of the map, from the most salient. The sooner the probability of the class falls, the
smaller is the area under its curve, and the better the map.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

NUM_STEPS = 6
"""Equal parts in which the pixels are deleted."""

NUM_RANDOM_MAPS = 7
"""Random maps that a map is compared with: by chance, one of eight maps beats them all."""

_BATCH_SIZE = 16


def draw_random_maps(map_HW: Tensor, *, num_maps: int, seed: int) -> Tensor:
    """Return maps of the same smoothness as a map, and with no other relation to it.

    They have the amplitudes of its Fourier transform and random phases, and so the same
    autocorrelation (surrogates of Theiler et al. 1992).

    Args:
        map_HW: Map, shape (H, W).
        num_maps: Number R of maps.
        seed: Random seed.

    Returns:
        Shape (R, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((num_maps, *map_HW.shape), generator=generator).to(map_HW)
    spectrum = torch.fft.rfft2(noise)
    phases = spectrum / spectrum.abs().clamp_min(torch.finfo(torch.float32).tiny)
    amplitudes = torch.fft.rfft2(map_HW).abs()
    random: Tensor = torch.fft.irfft2(phases * amplitudes, s=map_HW.shape)
    return random


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (M, h, w) at another size, by bilinear interpolation."""
    return interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def compute_deletion_scores(
    network: nn.Module,
    image_CHW: Tensor,
    maps_MHW: Tensor,
    *,
    target: int,
    is_multi_label: bool,
    num_steps: int = NUM_STEPS,
) -> list[float]:
    """Return the area under the deletion curve of each map of an image, in [0, 1].

    Args:
        network: Network in eval mode.
        image_CHW: Normalised image; zero is the mean colour.
        maps_MHW: Maps at the size of the image.
        target: Index of the class whose probability is followed.
        is_multi_label: Whether classes do not exclude each other.
        num_steps: Number of deletions.
    """
    num_maps, num_pixels = len(maps_MHW), maps_MHW[0].numel()
    ranks = maps_MHW.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = [round(num_pixels * step / num_steps) for step in range(num_steps + 1)]
    jobs = [(row, count) for row in range(num_maps) for count in counts[1:-1]]
    image = image_CHW.flatten(1)
    ends = torch.stack([image, torch.zeros_like(image)]).view(2, *image_CHW.shape)
    with torch.inference_mode():
        probabilities = [_compute_probabilities(network, ends, target, is_multi_label)]
        for first in range(0, len(jobs), _BATCH_SIZE):
            chunk = jobs[first : first + _BATCH_SIZE]
            keep = torch.stack([ranks[row] >= count for row, count in chunk])
            deleted = (keep[:, None] * image).view(len(chunk), *image_CHW.shape)
            probabilities.append(_compute_probabilities(network, deleted, target, is_multi_label))
    values = torch.cat(probabilities)
    curves = torch.cat(
        [
            values[:1].expand(num_maps, 1),
            values[2:].view(num_maps, -1),
            values[1:2].expand(num_maps, 1),
        ],
        dim=1,
    )
    fractions = torch.tensor(counts, dtype=torch.float64) / num_pixels
    return [float(area) for area in torch.trapezoid(curves, fractions, dim=1)]


def _compute_probabilities(
    network: nn.Module, images: Tensor, target: int, is_multi_label: bool
) -> Tensor:
    """Return the probabilities of a class, float64 on the CPU, shape (B,)."""
    logits = network(images.contiguous(memory_format=torch.channels_last)).double().cpu()
    probabilities = logits.sigmoid() if is_multi_label else logits.softmax(dim=1)
    return torch.as_tensor(probabilities[:, target])
