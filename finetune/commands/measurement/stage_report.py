"""Results of heads on earlier stages of the backbone, in the run folder and in trackers."""

import json
from typing import Any

from finetune.errors import RunFolderError
from finetune.probe.stage_probes import StageProbes
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.training.loggers.run_tracker import RunTracker

_VERSION = 1


def record_stages(run: RunFolder, stages: StageProbes | None, tracker: RunTracker) -> None:
    """Write the results to ``stages.json`` and to the trackers, if there are any.

    Raises:
        StorageError: The disk is full or fails.
    """
    if stages is None:
        return
    content = {"version": _VERSION, **stages.to_json()}
    write_text(run.stages_path, json.dumps(content, indent=2) + "\n")
    summary: dict[str, float] = {
        "stages/accuracy_lead": stages.accuracy_lead,
        "stages/loss_ratio": stages.loss_ratio,
    }
    for score in stages.scores:
        summary[f"stages/{score.name}/accuracy"] = score.accuracy
        summary[f"stages/{score.name}/loss"] = score.loss
    tracker.log_summary(summary)


def read_stages(run: RunFolder) -> dict[str, Any] | None:
    """Return the results of a run; None where no stages were probed.

    Raises:
        RunFolderError: ``stages.json`` is damaged.
    """
    path = run.stages_path
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        del content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Remove it.") from error
    return content
