"""The page to try a model, the page of the interface, and their files."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from finetune.server.answer_keys import list_answer_keys
from finetune.server.error_responses import EVERYWHERE

_MODULES = (
    "page", "answers", "elements", "model_section", "photo_inputs", "predictions", "requests",
    "served_model", "token_form",
)  # fmt: skip
"""Modules of the page to try a model; the first one imports the others."""

_ASSETS = {
    # the look of the report
    "report.css": ("finetune.report", "text/css"),
    "page.css": ("finetune.server", "text/css"),
    "theme.js": ("finetune.report", "text/javascript"),
    **{f"{name}.js": ("finetune.server", "text/javascript") for name in _MODULES},
}


def read_assets() -> Mapping[str, tuple[bytes, str]]:
    """Return the content and media type of each file that the pages load."""
    return {
        name: ((files(package) / "assets" / name).read_bytes(), media_type)
        for name, (package, media_type) in _ASSETS.items()
    }


def render_page(version: str, *, needs_token: bool) -> str:
    """Return the page to try a model, which asks the server for everything about it.

    Args:
        version: Version of finetune, for the footer.
        needs_token: Whether the page has to ask for a token first.
    """
    return _render("page.html.j2", version=version, needs_token=needs_token)


def render_docs(schema: Mapping[str, Any], version: str) -> str:
    """Return the page of the interface, which needs nothing from elsewhere.

    Args:
        schema: OpenAPI description.
        version: Version of finetune, for the footer.
    """
    operations = [
        {
            "path": path,
            "method": method.upper(),
            "keys": list_answer_keys(schema, operation),
            **operation,
        }
        for path, entry in schema["paths"].items()
        for method, operation in entry.items()
        if method in ("get", "post")
    ]
    return _render(
        "docs.html.j2", version=version, operations=operations, statuses=dict(EVERYWHERE)
    )


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune.server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
