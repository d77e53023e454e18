"""Tests of the processes of a run; those with several processes are integration tests."""

from pathlib import Path

import pytest

from finetune.commands.fit.process_group import _wait_for_shared_storage, open_rendezvous
from finetune.config.schema import TrainerConfig
from finetune.errors import RunFolderError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter


def test_wait_for_shared_storage_missing_run_folder_raises_run_folder_error(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match=str(tmp_path / "run")):
        _wait_for_shared_storage(run, None, timeout_seconds=0.0)


def test_open_rendezvous_of_single_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with open_rendezvous(TrainerConfig(), Reporter()) as rendezvous:
        assert rendezvous is None
