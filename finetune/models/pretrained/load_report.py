"""Load report of pretrained weights: loaded parameters, missing keys and unexpected keys."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.errors import ModelError
from finetune.models.pretrained.weights import WeightsSource
from finetune.types import LoadReport

MIN_LOADED_FRACTION = 0.99
"""Fraction of the backbone's parameters that weights must provide."""


@dataclass(frozen=True, slots=True)
class IncompatibleKeys:
    """Incompatible keys of one ``load_state_dict``.

    Attributes:
        missing: Keys of the module that the state dict does not have.
        unexpected: Keys of the state dict that the module does not have, and their sizes.
    """

    missing: tuple[str, ...]
    unexpected: Mapping[str, int]


@contextmanager
def record_loads() -> Iterator[dict[int, IncompatibleKeys]]:
    """Record the incompatible keys of each ``load_state_dict`` within the block, by module id.

    timm loads with ``strict=False`` as soon as the number of classes differs, and gives no warning
    when no key matches.
    """
    loads: dict[int, IncompatibleKeys] = {}
    original = nn.Module.load_state_dict

    def load_and_record(
        self: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        result = original(self, state, *args, **kwargs)
        unexpected = {name: state[name].numel() for name in result.unexpected_keys}
        loads[id(self)] = IncompatibleKeys(tuple(result.missing_keys), unexpected)
        return result

    nn.Module.load_state_dict = load_and_record  # type: ignore[method-assign, assignment]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def build_load_report(
    module: nn.Module,
    head: set[str],
    source: WeightsSource,
    incompatible_keys: IncompatibleKeys | None,
) -> LoadReport:
    """Build the report of which parameters of the backbone the source provided.

    Args:
        module: The loaded network.
        head: Names of the classifier's parameters.
        source: Source of the weights.
        incompatible_keys: Incompatible keys of the load; None where nothing was loaded.
    """
    sizes = {n: p.numel() for n, p in module.named_parameters() if n not in head}
    if not source.pretrained:
        return LoadReport(source.label, 0, sum(sizes.values()))
    state = module.state_dict()
    missing = tuple(state) if incompatible_keys is None else incompatible_keys.missing
    missing_backbone = tuple(
        name for name in missing if name not in head and state[name].is_floating_point()
    )
    num_parameters = sum(sizes.values())
    num_loaded = num_parameters - sum(sizes.get(name, 0) for name in missing_backbone)
    # another classifier at the same place, such as one with hidden layers
    prefixes = tuple({f"{name.rpartition('.')[0]}." for name in head})
    unexpected = {
        name: size
        for name, size in (incompatible_keys.unexpected.items() if incompatible_keys else ())
        if not name.startswith(prefixes)
    }
    return LoadReport(source.label, num_loaded, num_parameters, missing_backbone, unexpected)


def check_loaded(report: LoadReport, source: WeightsSource) -> None:
    """Check that the source provided the weights of the backbone.

    Raises:
        ModelError: It provided less than 99% of the parameters, BatchNorm statistics are missing,
            or a file has over 1% more parameters than the backbone.
    """
    if not source.pretrained:
        return
    statistics = [
        name for name in report.missing_keys if name.endswith(("running_mean", "running_var"))
    ]
    if report.loaded_fraction >= MIN_LOADED_FRACTION and statistics:
        raise ModelError(
            f"{report.source} has no BatchNorm statistics ('{statistics[0]}' and possibly others "
            f"are missing). Save the whole state_dict(), including buffers."
        )
    num_unexpected = sum(report.unexpected_keys.values()) if "state_dict" in source.overlay else 0
    if report.loaded_fraction >= MIN_LOADED_FRACTION:
        if num_unexpected > (1 - MIN_LOADED_FRACTION) * report.num_parameters:
            raise ModelError(
                f"{report.source} has {num_unexpected:,} parameters that the backbone does not "
                f"have (such as '{next(iter(report.unexpected_keys))}'). They belong to a larger "
                f"backbone: pass that one."
            )
        return
    keys = list(source.overlay.get("state_dict", {}))
    example = f" The file's keys look like '{keys[0]}'." if keys else ""
    raise ModelError(
        f"{report.source} provides only {report.loaded_fraction:.1%} of the backbone's parameters; "
        f"'{report.missing_keys[0]}' and others are missing.{example} Either the weights belong to "
        f"another backbone (pass that one), or their keys have a prefix (remove it)."
    )
