"""The page: templates filled in, with the style sheet and the scripts inside."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from finetune.report.number_formats import FILTERS
from finetune.report.run_facts import RunFacts
from finetune.report.section_registry import Section, build_sections

_STYLES = ("vendor/uplot/uPlot.min.css", "report.css", "photos.css")
_SCRIPTS = ("vendor/uplot/uPlot.iife.min.js", "theme.js", "report.js", "feature_map.js")


def render_report(facts: RunFacts, *, version: str, written_at: datetime | None = None) -> str:
    """Return the page of one run as HTML.

    Args:
        facts: What is known of the run.
        version: Version of finetune, for the footer.
        written_at: Time for the footer; None for now.
    """
    return render_page(
        "report.html.j2",
        title=facts.name,
        sections=build_sections(facts),
        version=version,
        written_at=written_at,
        values={"facts": facts},
    )


def render_page(
    template: str,
    *,
    title: str,
    sections: Sequence[Section],
    version: str,
    written_at: datetime | None = None,
    values: Mapping[str, Any] | None = None,
) -> str:
    """Return a page of sections.

    Args:
        template: Name of a template that extends ``base.html.j2``.
        title: Title of the page.
        sections: Sections in their order.
        version: Version of finetune, for the footer.
        written_at: Time for the footer; None for now.
        values: Further names that the template uses.
    """
    # imports for 40 ms, which no other command needs
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("finetune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({**FILTERS, "json_data": lambda value: Markup(format_json(value))})
    written_at = written_at or datetime.now().astimezone()
    scripts = _read_assets(_SCRIPTS)
    return environment.get_template(template).render(
        title=title,
        sections=sections,
        # no text of the assets contains a closing tag, which a test checks
        styles=Markup(_read_assets(_STYLES)),
        scripts=Markup(scripts),
        content_policy=Markup(_build_content_policy(scripts)),
        version=version,
        written_at=written_at.strftime("%-d %B %Y, %H:%M"),
        **(values or {}),
    )


def format_json(value: Any) -> str:
    """Return JSON that may stand in a script element: no text in it can close the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _build_content_policy(scripts: str) -> str:
    """Return the page's content security policy: no network, and no script but that of the page.

    Styles are allowed wherever they stand, as the charts set some on their elements.

    Args:
        scripts: Text of the one script element; others hold data, which no browser runs.
    """
    digest = base64.b64encode(hashlib.sha256(scripts.encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def _read_assets(names: Iterable[str]) -> str:
    folder = files("finetune.report") / "assets"
    return "\n".join((folder / name).read_text(encoding="utf-8").strip() for name in names)
