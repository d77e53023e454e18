"""Checks of the run folders and bundles that a command names, before torch is imported."""

from collections.abc import Iterable
from pathlib import Path

from finetune.bundle.model_card import find_bundle
from finetune.errors import RunFolderError
from finetune.lookup import suggest_path
from finetune.system.given_paths import exists
from finetune.system.run_folder import is_run


def check_named_runs(paths: Iterable[Path]) -> None:
    """Check that each path is a run folder or a bundle.

    Raises:
        RunFolderError: One is neither.
    """
    for path in paths:
        if not is_run(path) and find_bundle(path) is None:
            raise RunFolderError(explain_other_folder(path))


def explain_other_folder(path: Path) -> str:
    """Return why a path is neither a run folder nor a bundle, and what to pass instead."""
    if not exists(path):
        return (
            f"{path} does not exist.{suggest_path(path)} Pass a run folder, for example "
            f"runs/latest, or a bundle."
        )
    if (path / "study.json").is_file():
        return (
            f"{path} is the folder of finetune tune. Compare its trials: finetune report "
            f"{path / 'trials'}/*"
        )
    return (
        f"{path} is neither a run folder (config.yaml and manifest.csv) nor a bundle "
        f"(finetune.json). Pass a folder that finetune fit or finetune export has written."
    )
