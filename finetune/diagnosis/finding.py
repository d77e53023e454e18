"""Finding of a rule: what the numbers show, and what to do about it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["problem", "warning", "info", "good"]

SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "info", "good")
"""Severities, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Finding of a rule.

    Attributes:
        rule: Name of the rule.
        severity: "problem" (the model is not what it could easily be), "warning" (it may not be),
            "info" (worth knowing, nothing is wrong) or "good".
        title: Finding in a few words.
        sentence: Finding with the numbers that it stands on.
        numbers: These numbers by name.
        remedy: What to do; may be empty. A colon at its end is for the option, and becomes a full
            stop without one.
        option: Option of ``finetune fit`` that does it, as ``key=value``; may be empty.
    """

    rule: str
    severity: Severity
    title: str
    sentence: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    remedy: str = ""
    option: str = ""

    def __post_init__(self) -> None:
        """End the remedy without an option as a sentence."""
        if not self.option and self.remedy.endswith(":"):
            object.__setattr__(self, "remedy", f"{self.remedy[:-1]}.")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "numbers": dict(self.numbers)}
