"""Ensembles: the weighted mean of the probabilities of several models, saved as one bundle."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import (
    ModelBundle,
    collect_versions,
    combine_models,
    format_card_json,
    load_model,
    save_bundle,
)
from finetune.bundle.ensemble_card import ensemble_to_json, get_member_folder
from finetune.bundle.model_page.render_page import render_ensemble_readme
from finetune.system.files import write_folder_atomically


def save_ensemble(
    members: Sequence[ModelBundle | Path],
    folder: Path,
    *,
    weights: Sequence[float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Write the mean of several models as one bundle, atomically, replacing an existing one.

    ``finetune.json`` has the classes, weights and facts; ``members/0``, ``members/1`` … are
    ordinary bundles, each with its own preprocessing, temperature and class prior.

    Args:
        members: Models, or their run folders, bundle folders or checkpoints. The members of an
            ensemble take its place.
        folder: Folder to write.
        weights: Weight of each given model; None weights all alike. They are divided by their sum.
        facts: Facts on the card of the ensemble besides those of its members, such as metrics.

    Returns:
        The ensemble as ``load_model`` returns it.

    Raises:
        ModelError: The models do not have the same classes.
        RunFolderError: A model is missing or damaged.
        StorageError: The disk is full, read-only or fails.
        ValueError: The weights are invalid.
    """
    models = [load_model(member) if isinstance(member, Path) else member for member in members]
    ensemble = combine_models(models, weights=weights, facts=facts, source=folder)
    cards = [member.card for member in ensemble.members]
    with write_folder_atomically(folder) as temporary:
        for number, member in enumerate(ensemble.members):
            save_bundle(member.network, member.card, temporary / get_member_folder(number))
        tree = {
            **ensemble_to_json(ensemble.card, cards, ensemble.weights),
            "versions": {"python": platform.python_version(), **collect_versions()},
        }
        (temporary / "finetune.json").write_text(format_card_json(tree), encoding="utf-8")
        readme = render_ensemble_readme(ensemble.card, cards, ensemble.weights)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
    return ensemble
