"""Sampling weights and epoch samplers.

``GroupDraws`` is exported for users: a custom ``imbalance.sampler`` may return it.
"""

from finetune.data.samplers.sampling_weights import GroupDraws

__all__ = ["GroupDraws"]
