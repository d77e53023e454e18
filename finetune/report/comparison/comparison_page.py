"""Page that compares several runs."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from finetune.report.comparison.changed_section import build_changed
from finetune.report.comparison.overlay_section import build_overlay
from finetune.report.comparison.paired_section import build_paired
from finetune.report.comparison.runs_section import (
    build_differences,
    build_runs,
    label_runs,
)
from finetune.report.page import render_page
from finetune.report.run_facts import RunFacts
from finetune.report.section_registry import Section

COMPARISON_SECTIONS: tuple[tuple[str, str, Callable[[Sequence[RunFacts]], Any | None]], ...] = (
    ("runs", "Runs", build_runs),
    ("differences", "Settings that differ", build_differences),
    ("overlay", "Curves", build_overlay),
    ("paired", "Paired tests", build_paired),
    ("changed", "Changed predictions", build_changed),
)
"""Name of the template, title and builder of each section, in their order."""


def render_comparison(
    runs: Sequence[RunFacts], *, version: str, written_at: datetime | None = None
) -> str:
    """Return the page of several runs as HTML.

    Args:
        runs: Two or more runs of the same classes; the others are compared with the first.
        version: Version of finetune, for the footer.
        written_at: Time for the footer; None for now.
    """
    contents = [(name, title, build(runs)) for name, title, build in COMPARISON_SECTIONS]
    labels = label_runs(runs)
    others = labels[1] if len(labels) == 2 else f"{len(labels) - 1} other runs"
    return render_page(
        "comparison.html.j2",
        title=f"{labels[0]} and {others}",
        sections=[Section(*content) for content in contents if content[2] is not None],
        version=version,
        written_at=written_at,
    )
