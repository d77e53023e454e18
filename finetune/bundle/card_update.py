"""Addition of facts to the model card of a written bundle, and to its README."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import format_card_json
from finetune.bundle.ensemble_card import combine_cards, is_ensemble, parse_ensemble
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.bundle.model_page.render_page import render_ensemble_readme, render_readme
from finetune.errors import RunFolderError
from finetune.system.files import write_text


def add_card_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to ``finetune.json`` of a bundle, and write its README again.

    Args:
        folder: Bundle folder, of one model or of an ensemble.
        facts: Facts by name; they replace those of the same name.

    Raises:
        RunFolderError: ``finetune.json`` is missing or damaged.
        StorageError: The disk is full, read-only or fails.
    """
    tree = read_card_json(folder)
    tree["facts"] = {**tree.get("facts", {}), **facts}
    readme = render_stored_readme(folder, tree)
    write_text(folder / "finetune.json", format_card_json(tree))
    write_text(folder / "README.md", readme)


def render_stored_readme(
    folder: Path,
    tree: Mapping[str, Any],
    *,
    repository: str | None = None,
    library: str | None = None,
    own_license: str | None = None,
) -> str:
    """Return the README of a bundle, whose weights are not read.

    Args:
        folder: Bundle folder, of one model or of an ensemble.
        tree: Content of its ``finetune.json``, perhaps changed.
        repository: Repository on the hub, as user/name; None for a folder.
        library: Library that loads the model, see ``render_readme``; an ensemble has finetune's.
        own_license: Licence of the model; None for that of the backbone's weights.

    Raises:
        RunFolderError: The card, or that of a member, is damaged.
    """
    try:
        if not is_ensemble(tree):
            card = ModelCard.from_json(tree)
            return render_readme(
                card, repository=repository, library=library, own_license=own_license
            )
        folders, weights, facts = parse_ensemble(tree)
        cards = [ModelCard.from_json(read_card_json(folder / member)) for member in folders]
        card = combine_cards(cards, weights, names=list(map(str, folders)), facts=facts)
        return render_ensemble_readme(
            card, cards, weights, repository=repository, own_license=own_license
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{folder}: the model card is damaged ({error!r}).") from error
