"""JSON lines file of results, to which several processes may append."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.lib.comparison.study import Case, Study
from scripts.benchmarks.lib.comparison.tools import TOOLS, Run

Result = dict[str, Any]

KEY = (
    "case", "folder", "selection", "backbone", "weights", "seed", "tool", "settings", "label",
)  # fmt: skip
"""Fields that identify a run: it is not repeated if a result has the same."""


def build_key(case: Case, run: Run, *, label: str) -> Result:
    """Return the fields that identify a run.

    Args:
        case: Its images.
        run: Its tool, weights and seed.
        label: Name of the state of finetune, such as a version.
    """
    study, weights = run.study, run.weights
    settings = [*study.settings] if run.is_finetune else []
    settings += [f"image_size={study.image_size}"] if study.image_size is not None else []
    settings += [f"epochs={study.epochs}"] if study.epochs is not None else []
    values = (
        case.name, str(case.folder.resolve()), case.selection, weights.backbone, weights.file.name,
        run.seed, run.tool, " ".join(settings), label if run.is_finetune else "",
    )  # fmt: skip
    return dict(zip(KEY, values, strict=True))


def find_result(results: Sequence[Result], key: Mapping[str, Any]) -> Result | None:
    """Return the result of a run, or None."""
    return next((r for r in results if all(r[name] == key[name] for name in KEY)), None)


def read_results(file: Path) -> list[Result]:
    """Return all results; an incomplete last line, of a killed process, is left out."""
    if not file.exists():
        return []
    results = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise SystemExit(f"{file}:{number} is no JSON; remove the line") from None
    return results


def append_result(file: Path, result: Mapping[str, Any]) -> None:
    """Append a result as one line, and remove an incomplete last line first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
        stream.write((json.dumps(result) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def select_results(results: Sequence[Result], study: Study, *, label: str) -> list[Result]:
    """Return the results of all runs of a study, of all tools, and of one state of finetune."""
    keys = []
    for tool in TOOLS:
        for case in study.cases:
            for weights in study.weights:
                for seed in study.seeds:
                    run = Run(tool, seed, weights, study)
                    keys.append(build_key(case, run, label=label))
    return [found for key in keys if (found := find_result(results, key)) is not None]
