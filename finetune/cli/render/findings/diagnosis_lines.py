"""Diagnosis of a run on the console: the worst findings, or what is good and the notes."""

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
        return _build_good_lines(findings)
    lines = ["Diagnosis:"]
    for finding in wrong[:MAX_FINDINGS]:
        lines += wrap_finding(finding)
    notes = _get_notes(findings)[: MAX_FINDINGS - len(wrong[:MAX_FINDINGS])]
    for note in notes:  # without their options: the faults come first
        lines += _wrap_title(note)
    num_left = len(findings) - len(wrong[:MAX_FINDINGS]) - len(notes)
    if num_left:
        lines.append(f"  {format_count(num_left, 'further finding')} in diagnosis.json")
    return lines


def _build_good_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is good, with the titles of the notes."""
    good = next((one["title"] for one in findings if one["severity"] == "good"), "")
    lines = [f"Diagnosis: {_lower_first(good) or 'no fault in training was found'}"]
    notes = _get_notes(findings)
    for note in notes[:MAX_FINDINGS]:
        lines += _wrap_title(note)
        if note.get("option"):
            lines += _wrap_remedy(note)
    if notes:
        lines.append("  details in diagnosis.json")
    return lines


def _get_notes(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [finding for finding in findings if finding["severity"] == "info"]


def wrap_finding(finding: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a finding, at most 80 characters wide but for an option."""
    yield from _wrap_title(finding)
    yield from _wrap(finding["sentence"], "    ", "    ")
    yield from _wrap_remedy(finding)


def _wrap_title(finding: Mapping[str, Any]) -> list[str]:
    name = "note" if finding["severity"] == "info" else finding["severity"]
    return _wrap(f"{name}: {finding['title']}", "  ", "    ")


def _wrap_remedy(finding: Mapping[str, Any]) -> list[str]:
    remedy = f"{finding['remedy']} {finding['option']}".strip()
    return _wrap(f"-> {remedy}", "    ", "       ") if remedy else []


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
