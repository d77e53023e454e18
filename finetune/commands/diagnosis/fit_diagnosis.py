"""Diagnosis at the end of a run, as ``diagnosis.json`` in its folder."""

import json
from collections.abc import Mapping
from typing import Any

from finetune.commands.diagnosis.run_evidence import read_evidence
from finetune.commands.report.run_files import read_json
from finetune.diagnosis.diagnose import diagnose, diagnose_folds
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder, is_run
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

    Those of a cross-validation are those on all held-out images and those of most folds.

    Raises:
        FinetuneError: The config or the manifest of the run is damaged.
    """
    evidence = read_evidence(run)
    if not run.folds_csv_path.is_file():
        return [finding.to_json() for finding in diagnose(evidence)]
    parts = sorted((run.path / "folds").glob("[0-9]*"), key=lambda path: path.name)
    folds = [diagnose(read_evidence(RunFolder(path))) for path in parts if is_run(path)]
    return [finding.to_json() for finding in diagnose_folds(evidence, folds)]


def read_diagnosis(run: RunFolder) -> list[Mapping[str, Any]] | None:
    """Return the findings of a run as JSON values; None if it was not diagnosed."""
    tree = read_json(run.diagnosis_path)
    findings = tree.get("findings") if isinstance(tree, dict) else None
    return findings if isinstance(findings, list) else None
