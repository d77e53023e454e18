"""The proof that weights arrived: what a load filled, left unfilled, and had no place for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.errors import ModelError
from finetune.models.weights import WeightsSource
from finetune.types import LoadReport

MIN_LOADED_FRACTION = 0.99


@dataclass(frozen=True, slots=True)
class IncompatibleKeys:
    """What one ``load_state_dict`` left over: unfilled keys, and sizes of keys without a place."""

    missing: tuple[str, ...]
    unused: Mapping[str, int]


@contextmanager
def record_loads() -> Iterator[dict[int, IncompatibleKeys]]:
    """Note which keys each ``load_state_dict`` inside the block left unfilled, by module id.

    timm loads with ``strict=False`` as soon as the number of classes differs, and says nothing
    when no key fits.
    """
    loads: dict[int, IncompatibleKeys] = {}
    original = nn.Module.load_state_dict

    def recording(self: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = original(self, state, *args, **kwargs)
        unused = {name: state[name].numel() for name in result.unexpected_keys}
        loads[id(self)] = IncompatibleKeys(tuple(result.missing_keys), unused)
        return result

    nn.Module.load_state_dict = recording  # type: ignore[method-assign, assignment]
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
    """Return what the source filled of everything but the classifier.

    Args:
        module: The loaded network.
        head: Names of the classifier's parameters.
        source: Where the weights came from.
        incompatible_keys: What the load left over; None where nothing was loaded.
    """
    sizes = {n: p.numel() for n, p in module.named_parameters() if n not in head}
    if not source.pretrained:
        return LoadReport(source.label, 0, sum(sizes.values()))
    state = module.state_dict()
    missing = tuple(state) if incompatible_keys is None else incompatible_keys.missing
    lost = [n for n in missing if n not in head and state[n].is_floating_point()]
    loaded = sum(sizes.values()) - sum(sizes.get(name, 0) for name in lost)
    unused = {} if incompatible_keys is None else incompatible_keys.unused
    return LoadReport(source.label, loaded, sum(sizes.values()), tuple(lost), unused)


def check_loaded(report: LoadReport, source: WeightsSource) -> None:
    """Raise unless the backbone really came from the source.

    Raises:
        ModelError: Under 99% of its parameters did, BatchNorm statistics are missing, or a file
            holds more than the backbone has.
    """
    if not source.pretrained:
        return
    statistics = [
        name for name in report.missing_keys if name.endswith(("running_mean", "running_var"))
    ]
    if report.loaded_fraction >= MIN_LOADED_FRACTION and statistics:
        raise ModelError(
            f"{report.source} lacks BatchNorm statistics, first '{statistics[0]}'. Save the whole "
            f"state_dict(), buffers included."
        )
    num_unused = sum(report.unexpected_keys.values()) if "state_dict" in source.overlay else 0
    if report.loaded_fraction >= MIN_LOADED_FRACTION:
        if num_unused > (1 - MIN_LOADED_FRACTION) * report.num_parameters:
            raise ModelError(
                f"{report.source} holds {num_unused:,} numbers that the backbone has no place for, "
                f"first '{next(iter(report.unexpected_keys))}'. It belongs to a larger one; choose that."
            )
        return
    keys = list(source.overlay.get("state_dict", {}))
    found = f" The file's keys look like '{keys[0]}'." if keys else ""
    raise ModelError(
        f"Only {report.loaded_fraction:.1%} of the backbone's parameters came from {report.source}; missing "
        f"first '{report.missing_keys[0]}'.{found} The weights belong to another backbone or their keys "
        f"carry a prefix: rename the keys, or choose the backbone that they belong to."
    )
