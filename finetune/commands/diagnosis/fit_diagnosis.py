"""Diagnosis at the end of a run, as ``diagnosis.json`` in its folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.commands.diagnosis.run_evidence import read_evidence
from finetune.commands.report.run_files import read_json
from finetune.diagnosis.diagnose import diagnose, diagnose_folds
from finetune.diagnosis.divergence_error import Divergence
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
        _write(run, {"findings": build_diagnosis(run)})
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
        reporter.warn(f"The run was not diagnosed: {reason}. The model is complete.")


def write_divergence(
    run: RunFolder, divergence: Divergence, *, reporter: Reporter
) -> list[Mapping[str, Any]]:
    """Diagnose a run that has diverged, write the findings and return them, the worst first.

    Those of a fold are also those of its cross-validation, which ends with it. Any failure is a
    warning, and there are no findings: the run ends with its own error.

    Args:
        run: Run folder, of a fold, too.
        divergence: Where training diverged.
        reporter: Receiver of the warning.
    """
    try:
        evidence = replace(read_evidence(run), divergence=divergence)
        findings: list[Mapping[str, Any]] = [one.to_json() for one in diagnose(evidence)]
        content = {"divergence": divergence.to_json(), "findings": findings}
        _write(run, content)
        if run.cross_validation_run is not run:
            name = run.path.name
            part = f"fold {name}" if name.isdigit() else name
            named = [{**one, "title": f"{one['title']} ({part})"} for one in findings]
            _write(run.cross_validation_run, {**content, "findings": named})
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
        reporter.warn(f"The run was not diagnosed: {reason}.")
        return []
    return findings


def remove_diagnosis(run: RunFolder) -> None:
    """Remove the findings on a run, and on its cross-validation, before it trains again."""
    for one in (run, run.cross_validation_run):
        one.diagnosis_path.unlink(missing_ok=True)


def _write(run: RunFolder, content: Mapping[str, Any]) -> None:
    text = json.dumps({"version": _VERSION, **content}, indent=2, ensure_ascii=False)
    write_text(run.diagnosis_path, f"{text}\n")


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
