"""Download of pretrained weights into the local caches, for nodes without network access."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, ModelError, StorageError
from finetune.models.backbone import check_backbone_name, create_network
from finetune.models.pretrained.hub import discard, find_hub_weights
from finetune.models.pretrained.weights import is_damaged
from finetune.types import Reporter
from finetune.units import format_bytes


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """Weights of one backbone that are in the cache and load without error.

    Attributes:
        name: Backbone with the tag of its weights.
        url: Source of the weights.
        file: Cached file.
        num_bytes: Size of the file.
        was_cached: Whether the file was in the cache before.
    """

    name: str
    url: str
    file: Path
    num_bytes: int
    was_cached: bool


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Result of ``fetch``.

    Attributes:
        weights: One entry per backbone, in the order of the names.
    """

    weights: tuple[FetchedWeights, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "weights": [
                {
                    "name": entry.name,
                    "url": entry.url,
                    "file": str(entry.file),
                    "num_bytes": entry.num_bytes,
                    "was_cached": entry.was_cached,
                }
                for entry in self.weights
            ]
        }


def fetch(backbones: str | Sequence[str], *, reporter: Reporter | None = None) -> FetchResult:
    """Download the weights that ``fit`` would use, and check that they load.

    Args:
        backbones: One or more timm names, with or without a tag; a failure does not affect
            the others.
        reporter: Receiver of a note per backbone.

    Raises:
        ModelError: Some backbones could not be fetched; the message lists each with its reason.
        StorageError: The same, if all failures are disk errors.
    """
    reporter = reporter or Reporter()
    names = list(dict.fromkeys([backbones] if isinstance(backbones, str) else backbones))
    fetched: list[FetchedWeights] = []
    errors: dict[str, FinetuneError] = {}
    for name in names:
        try:
            fetched.append(_fetch_one(name, reporter))
        except FinetuneError as error:
            errors[name] = error
        else:
            reporter.note(_describe_weights(fetched[-1]))
    if errors:
        raise _combine_errors(errors, len(names))
    return FetchResult(tuple(fetched))


def _fetch_one(backbone: str, reporter: Reporter) -> FetchedWeights:
    check_backbone_name(backbone)
    weights = find_hub_weights(backbone)
    if weights is None:
        raise ModelError(
            f"timm has no weights for '{backbone}'. Train it from scratch with --weights random."
        )
    cached_file = weights.find_cached()
    if cached_file is not None and is_damaged(cached_file):
        reporter.warn(f"{cached_file} is damaged and is downloaded again")
        discard(cached_file)
        cached_file = None
    create_network(backbone, num_classes=2)  # downloads and loads as fit does
    file = weights.find_cached()
    if file is None:
        raise ModelError(
            f"The weights of '{backbone}' load, but are not in {weights.cache_dir}, where a node "
            f"without network access looks for them. Pass a local file to fit with --weights."
        )
    return FetchedWeights(
        weights.name, weights.address, file, file.stat().st_size, cached_file is not None
    )


def _describe_weights(weights: FetchedWeights) -> str:
    status = "already cached" if weights.was_cached else "downloaded"
    size = format_bytes(weights.num_bytes)
    return f"{weights.name}: {size}, {status} from {weights.url}\n  {weights.file}"


def _combine_errors(errors: dict[str, FinetuneError], num_backbones: int) -> FinetuneError:
    """Return one error with the messages of all."""
    if num_backbones == 1:
        return next(iter(errors.values()))
    is_disk_only = all(isinstance(error, StorageError) for error in errors.values())
    error_type = StorageError if is_disk_only else ModelError
    lines = "".join(f"\n  {name}: {error}" for name, error in errors.items())
    return error_type(f"{len(errors)} of {num_backbones} backbones could not be fetched:{lines}")
