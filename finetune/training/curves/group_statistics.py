"""Gradient norm and change of the weights of each layer group in an epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.models.classifier import ImageClassifier

EPOCH_START_KEY = "epoch_start_weights"
"""Checkpoint key of the weights at the start of an unfinished epoch."""


@dataclass(frozen=True, slots=True)
class WeightChanges:
    """Change of the weights of the layer groups over an epoch.

    Attributes:
        relative: Norm of the change relative to that of the weights at the start, by group. A
            frozen group has 0; a group whose weights were zero is left out.
        damaged: First group whose weights are not finite after the epoch; None if all are.
    """

    relative: Mapping[str, float]
    damaged: str | None = None


class GroupStatistics:
    """Mean gradient norm of the layer groups over an epoch, and the change of their weights.

    Gradients are those of the optimizer's steps, averaged over the ranks and not clipped, so that
    all ranks have the same numbers. Nothing waits for a GPU before the end of the epoch.

    Args:
        classifier: Classifier whose weights train; each process holds all of them.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self._names = [group.name for group in classifier.groups]
        group_of = {
            name: index
            for index, group in enumerate(classifier.groups)
            for name in group.parameter_names
        }
        self._parameters = dict(classifier.network.named_parameters())
        self._groups = {name: group_of[name] for name in self._parameters}
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._norm_sums: Tensor | None = None
        self._counts: Tensor | None = None
        self._start: dict[str, Tensor] = {}

    def start_epoch(self) -> None:
        """Reset the sums, and copy the weights that train to the memory of the CPU."""
        self._norm_sums = self._counts = None
        self._start = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self._parameters.items()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def add_gradients(self) -> Tensor:
        """Add the gradients of a step to the means, unless they are not finite.

        Returns:
            The norm of all gradients, the bits that ``clip_grad_norm_`` returns; a scalar on their
            device.
        """
        found = [
            (parameter.grad, self._groups[name])
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        ]
        if not found:
            return torch.zeros(())
        grads, groups = zip(*found, strict=True)
        norms_P = torch.stack(torch._foreach_norm(grads))
        total: Tensor = torch.linalg.vector_norm(norms_P)
        mask_GP = self._get_mask(groups, norms_P.device)
        norms_G = torch.linalg.vector_norm(norms_P.where(mask_GP, 0.0), dim=1)
        # fp16 skips steps whose gradients overflow
        is_counted = mask_GP.any(dim=1) & total.isfinite()
        norms_G = norms_G.where(is_counted, 0.0).float()
        if self._norm_sums is None or self._counts is None:
            self._norm_sums, self._counts = norms_G, is_counted.float()
        else:
            self._norm_sums = self._norm_sums.to(norms_G.device) + norms_G
            self._counts = self._counts.to(norms_G.device) + is_counted
        return total

    def _get_mask(self, groups: Sequence[int], device: torch.device) -> Tensor:
        """Return which gradients belong to each layer group, bool, shape (G, P)."""
        key = tuple(groups)
        if key not in self._masks:
            members = torch.tensor(groups) == torch.arange(len(self._names))[:, None]
            self._masks = {key: members.to(device)}
        return self._masks[key]

    def compute_grad_norms(self) -> Mapping[str, float]:
        """Return the mean norm over the steps of the epoch, by group; only groups with gradients.

        Waits for the device.
        """
        sums, counts = self.get_sums()
        return {
            name: total / count
            for name, total, count in zip(self._names, sums, counts, strict=False)
            if count
        }

    @torch.no_grad()
    def compute_weight_changes(self) -> WeightChanges:
        """Return the change of the weights since the start of the epoch.

        It is empty if the weights at the start are not known, as in an epoch that another release
        began. Waits for the device.
        """
        if not self._start:
            return WeightChanges({})
        pairs: list[list[Tensor]] = [[] for _ in self._names]
        for name, parameter in self._parameters.items():
            if name in self._start:
                start = self._start[name].to(parameter.device)
                norms = torch._foreach_norm([parameter.detach() - start, start])
                pairs[self._groups[name]].append(torch.stack(norms).float())
        changes: dict[str, float] = {}
        damaged = None
        for name, norms_P2 in zip(self._names, pairs, strict=True):
            if not norms_P2:
                changes[name] = 0.0
                continue
            change, size = torch.linalg.vector_norm(torch.stack(norms_P2), dim=0).tolist()
            if damaged is None and not math.isfinite(change):
                damaged = name
            if size:
                changes[name] = change / size
        return WeightChanges(changes, damaged)

    def get_sums(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the sum of the norms of each group, and the number of steps in it."""
        if self._norm_sums is None or self._counts is None:
            return (), ()
        return tuple(self._norm_sums.tolist()), tuple(self._counts.tolist())

    def resume_epoch(self, norm_sums: Sequence[float], counts: Sequence[float]) -> None:
        """Restore the sums of an epoch that is resumed midway."""
        if len(norm_sums) == len(counts) == len(self._names):
            self._norm_sums, self._counts = torch.tensor(norm_sums), torch.tensor(counts)

    def save_start(self, checkpoint: dict[str, object]) -> None:
        """Add the weights at the start of an unfinished epoch to a checkpoint."""
        if self._start:
            checkpoint[EPOCH_START_KEY] = self._start

    def load_start(self, checkpoint: Mapping[str, object]) -> None:
        """Restore the weights at the start of the epoch that a checkpoint is in."""
        stored = checkpoint.get(EPOCH_START_KEY)
        self._start = dict(stored) if isinstance(stored, dict) else {}

    def finish_epoch(self) -> None:
        """Drop the copy of the weights."""
        self._start = {}
