"""Section on the diagnosis: findings in sentences, with the numbers they stand on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.report.number_formats import format_number
from finetune.report.run_facts import RunFacts

_SEVERITIES = {"problem": "Problem", "warning": "Warning", "info": "Note", "good": "Good"}


@dataclass(frozen=True, slots=True)
class FindingEntry:
    """Finding of the diagnosis.

    Attributes:
        severity: "problem", "warning", "info" or "good".
        severity_name: Word for it.
        title: Finding in a few words.
        sentence: Finding with its evidence.
        numbers: Names and values that it stands on.
        remedy: What to do; may be empty.
        option: Option that does it, as it is typed; may be empty.
    """

    severity: str
    severity_name: str
    title: str
    sentence: str
    numbers: tuple[tuple[str, str], ...]
    remedy: str
    option: str


@dataclass(frozen=True, slots=True)
class DiagnosisSection:
    """Findings in the order of the diagnosis."""

    findings: tuple[FindingEntry, ...]


def build_diagnosis(facts: RunFacts) -> DiagnosisSection | None:
    """Return the findings of the diagnosis; None without one."""
    if facts.findings is None:
        return None
    return DiagnosisSection(tuple(_read_finding(finding) for finding in facts.findings))


def _read_finding(finding: Mapping[str, Any]) -> FindingEntry:
    severity = str(finding.get("severity", "info"))
    severity = severity if severity in _SEVERITIES else "info"
    numbers = finding.get("numbers") or {}
    return FindingEntry(
        severity,
        _SEVERITIES[severity],
        str(finding.get("title", "")),
        str(finding.get("sentence", "")),
        tuple((str(name).replace("_", " "), format_number(one)) for name, one in numbers.items()),
        str(finding.get("remedy") or ""),
        str(finding.get("option") or ""),
    )
