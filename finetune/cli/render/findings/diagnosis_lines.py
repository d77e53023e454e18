"""Diagnosis of a run on the console: the worst findings, or one line if nothing is wrong."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.units import format_count

MAX_FINDINGS = 5
"""Findings that are shown; the others are in ``diagnosis.json``."""

_WIDTH = 80
_ACCUSATIONS = ("problem", "warning")


def build_diagnosis_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a diagnosis, at most 80 characters wide but for an option.

    Args:
        findings: Findings as JSON values, the worst first.
    """
    wrong = [finding for finding in findings if finding["severity"] in _ACCUSATIONS]
    if not wrong:
        good = next((one["title"] for one in findings if one["severity"] == "good"), "")
        notes = sum(finding["severity"] == "info" for finding in findings)
        more = f"; {format_count(notes, 'note')} in diagnosis.json" if notes else ""
        return [f"Diagnosis: {_lower_first(good) or 'nothing wrong was found'}{more}"]
    lines = ["Diagnosis:"]
    for finding in wrong[:MAX_FINDINGS]:
        lines += wrap_finding(finding)
    num_left = len(findings) - len(wrong[:MAX_FINDINGS])
    if num_left:
        lines.append(f"  {format_count(num_left, 'further finding')} in diagnosis.json")
    return lines


def wrap_finding(finding: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a finding, at most 80 characters wide but for an option."""
    yield from _wrap(f"{finding['severity']}: {finding['title']}", "  ", "    ")
    yield from _wrap(finding["sentence"], "    ", "    ")
    remedy = f"{finding['remedy']} {finding['option']}".strip()
    if remedy:
        yield from _wrap(f"-> {remedy}", "    ", "       ")


def _wrap(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
