"""README of a model in Markdown, with the front matter that the Hugging Face hub reads."""

from collections.abc import Sequence

from finetune.bundle.ensemble_card import get_member_folder
from finetune.bundle.label_card import render_thresholds
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.data_paragraph import render_data, render_licence
from finetune.bundle.model_page.escape_text import escape_markdown
from finetune.bundle.model_page.limits_section import render_limits
from finetune.bundle.model_page.metric_tables import (
    render_calibration,
    render_classes,
    render_metrics,
)
from finetune.bundle.model_page.page_head import build_page_head
from finetune.bundle.model_page.probability_notes import render_probabilities
from finetune.bundle.model_page.usage_example import FOLDER, render_download, render_usage
from finetune.bundle.model_page.weights_origin import find_strictest, find_weights_origin
from finetune.bundle.validation_choices import describe_card_choices
from finetune.lookup import is_import_path
from finetune.units import format_count


def render_readme(
    card: ModelCard,
    *,
    repository: str | None = None,
    library: str | None = None,
    own_license: str | None = None,
    usage: str | None = None,
) -> str:
    """Return the README of a bundle: measured results, data, limits, classes and use.

    Args:
        card: Model card.
        repository: Repository on the hub, as user/name; None for a folder.
        library: Library that loads the model, see ``build_page_head``; None for timm, or finetune
            where timm cannot.
        own_license: Licence of the model; None for that of the backbone's weights.
        usage: Section on how to use the model, in place of that for finetune and timm.
    """
    noun = "label" if card.is_multi_label else "class"
    title = f"{card.backbone} for {format_count(len(card.classes), noun)}"
    origin = find_weights_origin(card)
    has_timm_format = card.head is None and not is_import_path(card.backbone)
    library = library or ("timm" if has_timm_format else "finetune")
    sections = (
        build_page_head(
            card, origin, title=repository or title, library=library, own_license=own_license
        ),
        f"\n# {title}\n\n",
        render_metrics(card.facts),
        render_limits(card),
        f"## {'Labels' if card.is_multi_label else 'Classes'}\n\n",
        render_classes(card),
        render_thresholds(card.classes, card.thresholds, facts=card.facts),
        "## Probabilities\n\n" if _has_probability_notes(card) else "",
        render_calibration(card.facts),
        render_probabilities(card),
        render_data(card),
        render_licence(origin, own_license),
        "## Use\n\n",
        _render_use(card, repository) if usage is None else usage,
    )
    return "".join(sections)


def render_ensemble_readme(
    card: ModelCard,
    cards: Sequence[ModelCard],
    weights: Sequence[float],
    *,
    repository: str | None = None,
    own_license: str | None = None,
) -> str:
    """Return the README of an ensemble: members, weights, measured results and use.

    Args:
        card: Card of the ensemble.
        cards: Cards of the members.
        weights: Weights of the members.
        repository: Repository on the hub, as user/name; None for a folder.
        own_license: Licence of the ensemble; None for that of the backbones' weights.
    """
    noun = "label" if card.is_multi_label else "class"
    title = (
        f"Ensemble of {format_count(len(cards), 'model')} for "
        f"{format_count(len(card.classes), noun)}"
    )
    members = "".join(
        f"| [{get_member_folder(number)}]({get_member_folder(number)}/README.md) "
        f"| {escape_markdown(member.backbone)} | {member.spec.input_size[-1]} px | {weight:.4f} |\n"
        for number, (member, weight) in enumerate(zip(cards, weights, strict=True))
    )
    sentence = describe_card_choices(card, cards)
    limits = render_limits(card)
    origins = [find_weights_origin(member) for member in cards]
    origin = find_strictest(origins)
    sections = (
        build_page_head(
            card, origin, title=repository or title, library="finetune", own_license=own_license
        ),
        f"\n# {title}\n\nThe probabilities are the weighted mean of those of the members. Each "
        f"member has its own preprocessing, temperature and class prior, and is a model of its "
        f"own.\n\n| member | backbone | image size | weight |\n|---|---|---|---|\n{members}\n",
        render_metrics(card.facts),
        f"{sentence}\n\n" if sentence and sentence not in limits else "",
        limits,
        f"## {'Labels' if card.is_multi_label else 'Classes'}\n\n",
        render_classes(card),
        render_thresholds(card.classes, card.thresholds, facts=card.facts),
        render_data(card),
        render_licence(origin, own_license),
        "## Use\n\n",
        render_download(repository),
        f"Use the ensemble with `finetune predict {FOLDER} images/`. {_describe_timm_use(cards)}\n",
    )
    return "".join(sections)


def _render_use(card: ModelCard, repository: str | None) -> str:
    scale = "" if card.temperature == 1 else f" / {card.temperature!r}"
    shift = "" if card.shift is None else " + shift"
    return render_usage(
        card.backbone,
        is_import_path=is_import_path(card.backbone),
        num_channels=card.spec.input_size[0],
        bit_depth=card.bit_depth,
        adjustment=f"{scale}{shift}",
        is_multi_label=card.is_multi_label,
        has_own_head=card.head is not None,
        repository=repository,
    )


def _has_probability_notes(card: ModelCard) -> bool:
    return bool(render_calibration(card.facts) or render_probabilities(card))


def _describe_timm_use(cards: Sequence[ModelCard]) -> str:
    """Return what timm can do with the members."""
    can_read = [card.head is None and not is_import_path(card.backbone) for card in cards]
    if not any(can_read):
        return "timm reads none of the members."
    which = "single members" if all(can_read) else "some of the members"
    return (
        f"timm reads {which}, as their README describes; the mean of their probabilities is then "
        f"to be computed."
    )
