"""Diagnosis at the end of a run, as ``diagnosis.json`` in its folder."""

import json
from collections.abc import Mapping
from typing import Any

from finetune.commands.diagnosis.run_evidence import read_evidence
from finetune.commands.report.run_files import read_json
from finetune.diagnosis.diagnose import diagnose
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_VERSION = 1


def write_diagnosis(run: RunFolder, *, reporter: Reporter) -> None:
    """Diagnose a run that has its bundle and write the findings, the worst first.

    Any failure is a warning: the model is complete.

    Args:
        run: Run folder.
        reporter: Receiver of the warning.
    """
    try:
        content = {"version": _VERSION, "findings": build_diagnosis(run)}
        write_text(run.diagnosis_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
        reporter.warn(f"The run was not diagnosed: {reason}. The model is complete.")


def build_diagnosis(run: RunFolder) -> list[Mapping[str, Any]]:
    """Return the findings on a run as JSON values, the worst first; nothing is written.

    Raises:
        FinetuneError: The config or the manifest of the run is damaged.
    """
    return [finding.to_json() for finding in diagnose(read_evidence(run))]


def read_diagnosis(run: RunFolder) -> list[Mapping[str, Any]] | None:
    """Return the findings of a run as JSON values; None if it was not diagnosed."""
    tree = read_json(run.diagnosis_path)
    findings = tree.get("findings") if isinstance(tree, dict) else None
    return findings if isinstance(findings, list) else None
