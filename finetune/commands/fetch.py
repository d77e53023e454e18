"""Bring backbones' weights into this machine's caches, for machines without network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, ModelError, StorageError
from finetune.models.backbone import check_backbone_name, create_network
from finetune.models.hub import discard, find_hub_weights
from finetune.models.weights import is_damaged
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """The weights of one backbone, in the cache and proved to load.

    Attributes:
        name: The backbone with the tag of its weights.
        url: Where they come from.
        file: Where they lie.
        num_bytes: How large the file is.
        was_cached: Whether an earlier download left them.
    """

    name: str
    url: str
    file: Path
    num_bytes: int
    was_cached: bool


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What ``fetch`` found or brought.

    Attributes:
        weights: One entry a backbone, in the order of the names.
    """

    weights: tuple[FetchedWeights, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "weights": [
                {
                    "name": one.name,
                    "address": one.url,
                    "file": str(one.file),
                    "bytes": one.num_bytes,
                    "was_cached": one.was_cached,
                }
                for one in self.weights
            ]
        }


def fetch(backbones: Sequence[str], *, reporter: Reporter | None = None) -> FetchResult:
    """Download the weights that ``fit`` would look for, and prove that they load.

    Args:
        backbones: timm names, with or without a tag; one that fails does not keep the others back.
        reporter: Told of each.

    Raises:
        ModelError: Names every backbone that could not be fetched, and why.
        StorageError: The same, where the disk alone was to blame.
    """
    reporter = reporter or Reporter()
    names = list(dict.fromkeys(backbones))
    done: list[FetchedWeights] = []
    failed: dict[str, FinetuneError] = {}
    for name in names:
        try:
            done.append(_fetch_one(name, reporter))
        except FinetuneError as error:
            failed[name] = error
        else:
            reporter.note(_describe_weights(done[-1]))
    if failed:
        raise _combine_errors(failed, len(names))
    return FetchResult(tuple(done))


def _fetch_one(backbone: str, reporter: Reporter) -> FetchedWeights:
    check_backbone_name(backbone)
    weights = find_hub_weights(backbone)
    if weights is None:
        raise ModelError(f"timm has no weights for '{backbone}'; it trains with --weights random.")
    before = weights.find_cached()
    if before is not None and is_damaged(before):
        reporter.warn(f"{before} is damaged and is fetched again")
        discard(before)
        before = None
    create_network(backbone, num_classes=2)  # the very way of fit
    file = weights.find_cached()
    if file is None:
        raise ModelError(
            f"The weights of '{backbone}' load, but are not in {weights.cache_dir}; a machine "
            f"without network would not find them. Pass a local file to fit with --weights."
        )
    return FetchedWeights(
        weights.name, weights.address, file, file.stat().st_size, before is not None
    )


def _describe_weights(weights: FetchedWeights) -> str:
    came = "there already, from" if weights.was_cached else "from"
    size = f"{weights.num_bytes / 1e6:.1f} MB"
    return f"{weights.name}: {size}, {came} {weights.url}\n  {weights.file}"


def _combine_errors(errors: dict[str, FinetuneError], num_backbones: int) -> FinetuneError:
    """Return one error that holds all messages."""
    if num_backbones == 1:
        return next(iter(errors.values()))
    disk_alone = all(isinstance(error, StorageError) for error in errors.values())
    kind = StorageError if disk_alone else ModelError
    lines = "".join(f"\n  {name}: {error}" for name, error in errors.items())
    return kind(f"{len(errors)} of {num_backbones} backbones could not be fetched:{lines}")
