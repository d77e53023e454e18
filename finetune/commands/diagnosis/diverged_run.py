"""End of a run whose training diverges: its diagnosis, its report, and the error with both."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from finetune.commands.diagnosis.fit_diagnosis import remove_diagnosis, write_divergence
from finetune.commands.report.fit_report import write_partial_report
from finetune.config.schema import Config
from finetune.diagnosis.diagnose import ACCUSATIONS
from finetune.diagnosis.divergence_error import DivergenceError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter


@contextmanager
def diagnose_divergence(run: RunFolder, config: Config, reporter: Reporter) -> Iterator[None]:
    """Write the diagnosis and the report of a run that diverges in the block, on rank 0.

    Findings of an earlier session are removed: they are of other epochs.

    Args:
        run: Run folder, of a fold, too.
        config: Its config.
        reporter: Receiver of warnings.

    Raises:
        DivergenceError: Training diverged; the message has the findings, too.
    """
    remove_diagnosis(run)
    try:
        yield
    except DivergenceError as error:
        findings = write_divergence(run, error.divergence, reporter=reporter)
        if not findings:
            raise
        shown = run.cross_validation_run
        has_report = write_partial_report(shown, config)
        message = f"{error} {_describe(findings, shown, has_report=has_report)}"
        raise DivergenceError(message, error.divergence) from error


def _describe(findings: Sequence[Mapping[str, Any]], run: RunFolder, *, has_report: bool) -> str:
    """Return the sentences on the findings for the message of the error."""
    first, *others = [one for one in findings if one["severity"] in ACCUSATIONS]
    remedy = f"{first['remedy']} {first['option']}".strip().rstrip(".")
    also = f" Also found: {'; '.join(one['title'] for one in others)}." if others else ""
    path = run.report_path if has_report else run.diagnosis_path
    hint = "" if has_report else f" (finetune report {shlex.quote(str(run.path))} shows it)"
    return f"Diagnosis: {first['title']}. {remedy}.{also} See {path}{hint}."
