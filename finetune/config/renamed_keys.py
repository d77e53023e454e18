"""Present names of the config keys of version 0.1, so that its run folders still load."""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS: Mapping[str, str] = {
    "augment.rare": "augment.rare_class_preset",
    "augment.rare_below": "augment.rare_class_fraction",
    "data.cache_px": "data.cache_shorter_side",
    "data.leaks": "data.leakage",
    "data.train_sizes": "data.train_image_size",
    "imbalance.allow_double": "imbalance.allow_double_correction",
    "imbalance.class_weights_from": "imbalance.class_weights_start_fraction",
    "imbalance.head": "imbalance.head_rebalancing",
    "optim.average_last": "optim.swa_fraction",
    "probe.mirrored": "probe.hflip",
    "probe.passes": "probe.last_stage_epochs",
    "probe.views": "probe.num_crops",
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "trainer.early_stopping": "trainer.early_stopping_patience",
    "trainer.gradient_clip": "trainer.gradient_clip_val",
}
"""Old dotted key to present dotted key; both in the same section."""

RENAMED_SAMPLER_PARAMS: Mapping[str, Mapping[str, str]] = {
    "deferred": {"from_share": "start_fraction"},
    "drs": {"from_share": "start_fraction"},
    "abundant_first": {"share": "first_fraction", "of_largest": "min_relative_size"},
}
"""Sampler or strategy to old and present names of its ``imbalance.sampler_params``."""


def rename_key(key: str) -> str:
    """Return the present name of a dotted key."""
    return RENAMED_KEYS.get(key, key)


def rename_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested config with the present names of its keys.

    A key that is given by both names keeps the old one, which validation then reports as unknown.
    """
    renamed: dict[str, Any] = dict(tree)
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.partition(".")
        values = renamed.get(section)
        new_key = new.partition(".")[2]
        if isinstance(values, Mapping):
            renamed[section] = _rename(values, {key: new_key})
    imbalance = renamed.get("imbalance")
    if isinstance(imbalance, Mapping) and isinstance(imbalance.get("sampler_params"), Mapping):
        sampler = imbalance.get("sampler", "auto")
        source = imbalance.get("strategy") if sampler == "auto" else sampler
        params = _rename(imbalance["sampler_params"], RENAMED_SAMPLER_PARAMS.get(str(source), {}))
        renamed["imbalance"] = {**imbalance, "sampler_params": params}
    return renamed


def _rename(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return values with the present names of their keys, unless both names are given."""
    return {
        key if names.get(key, key) in values else names[key]: value for key, value in values.items()
    }
