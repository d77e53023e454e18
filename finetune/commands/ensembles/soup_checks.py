"""Checks that the weights of runs can be averaged: same network, classes, data and start."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.errors import ConfigError
from finetune.evaluation.priors import is_same_prior
from finetune.exporters.timm_format import explain_refusal
from finetune.models.head import compute_backbone_digest, compute_network_digest
from finetune.system.run_folder import RunFolder

_SAME: tuple[tuple[str, Callable[[ModelBundle], Any]], ...] = (
    ("backbone", lambda bundle: bundle.card.backbone),
    ("arguments of the network", lambda bundle: dict(bundle.card.model_args)),
    ("heads", lambda bundle: bundle.card.head),
    ("classes", lambda bundle: bundle.card.classes),
    ("tasks", lambda bundle: "multi-label" if bundle.card.is_multi_label else "one class each"),
    ("preprocessing", lambda bundle: bundle.card.spec),
    ("range of values", lambda bundle: bundle.card.pixel_range),
)


def check_soup(paths: Sequence[Path], bundles: Sequence[ModelBundle]) -> None:
    """Check that runs have the same network, classes and preprocessing, and the same start.

    Also that the average can be written, in timm's format.

    Args:
        paths: Run folders.
        bundles: Their models.

    Raises:
        ConfigError: They do not; the message names the difference.
    """
    for path, bundle in zip(paths, bundles, strict=True):
        if not (path / "manifest.csv").is_file():
            raise ConfigError(
                f"--soup needs run folders, for their start and their validation images, but "
                f"{path} is none. Give the run folder."
            )
        if bundle.members:
            raise ConfigError(
                f"--soup averages the weights of networks, but {path} is an ensemble. Leave it out."
            )
    first = bundles[0]
    for path, bundle in zip(paths[1:], bundles[1:], strict=True):
        for name, get in _SAME:
            if get(bundle) != get(first):
                raise _build_error(name, (paths[0], get(first)), (path, get(bundle)))
        priors = first.card.priors, bundle.card.priors
        if None not in priors and not is_same_prior(priors[0].model, priors[1].model):  # type: ignore[union-attr]
            raise _build_error(
                "class prior of the network",
                (paths[0], _format_prior(first)),
                (path, _format_prior(bundle)),
            )
    _check_starts(paths, bundles)
    reason = explain_refusal(first.card.backbone, first.card.head_name)
    if reason is not None:
        raise ConfigError(
            f"--soup writes one network in the timm format: {reason.partition('. ')[0]}. Leave out "
            f"--soup: an ensemble of such networks can be exported."
        )


def _check_starts(paths: Sequence[Path], bundles: Sequence[ModelBundle]) -> None:
    starts = [_describe_start(path, bundle) for path, bundle in zip(paths, bundles, strict=True)]
    for path, start in zip(paths[1:], starts[1:], strict=True):
        if start[0] != starts[0][0]:
            raise _build_error("initial weights", (paths[0], starts[0][1]), (path, start[1]))


def _describe_start(path: Path, bundle: ModelBundle) -> tuple[str, str]:
    """Return what identifies the weights that a run started from, and a description of them.

    That is the digest of the backbone and of hidden layers of the head in
    ``checkpoints/start.ckpt``, or else their source, with the seed of random ones.
    """
    weights, seed = bundle.card.facts.get("weights"), bundle.card.facts.get("seed")
    description = f"random weights of seed {seed}" if weights == "random" else str(weights)
    if weights != "random" and bundle.card.head is not None:
        description += f" with hidden layers of seed {seed}"
    file = RunFolder(path).start_checkpoint_path
    if file.is_file():
        start = load_model(file)
        digest = (
            compute_backbone_digest(start.network)
            if start.card.head is None
            else compute_network_digest(start.network)
        )
        return digest, f"{description}, digest {digest[:12]}"
    return description, description


def _build_error(name: str, one: tuple[Path, object], other: tuple[Path, object]) -> ConfigError:
    return ConfigError(
        f"--soup cannot average {one[0]} and {other[0]}: their {name} differ ({one[1]} and "
        f"{other[1]}). Only runs that started from the same weights, on the same data, can be "
        f"averaged to one network; without --soup their probabilities are averaged."
    )


def _format_prior(bundle: ModelBundle) -> str:
    assert bundle.card.priors is not None, "checked by the caller"
    return ", ".join(f"{value:.3g}" for value in bundle.card.priors.model[:5])
