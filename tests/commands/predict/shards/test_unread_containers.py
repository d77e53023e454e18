"""Predictions in parts of tar files that cannot be read for a while."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import DataError
from tests.commands.predict.shards.test_sharded_prediction import predict, read_rows, write_tars


class FailingFile(io.BufferedReader):
    """File on a disk that fails after its first block."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes from the start of the file.

        Raises:
            OSError: They are beyond.
        """
        if self.tell() > 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().read(size)


@pytest.mark.parametrize("num_processes", [1, 2, 5])
@pytest.mark.parametrize("is_opened", [False, True])
def test_tar_that_cannot_be_read_for_a_while_is_read_by_a_rerun(
    tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    num_processes: int, is_opened: bool,
) -> None:  # fmt: skip
    """Whatever the numbers of files and processes: as many shards as files, fewer, or by hash."""
    write_tars(tmp_path / "tars", many, 4)
    folder = tmp_path / "parts"
    open_file = Path.open

    def fail(self: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if self.name != "1.tar":
            return open_file(self, mode, *args, **settings)
        if not is_opened:
            raise PermissionError(errno.EACCES, "Permission denied")
        return FailingFile(io.FileIO(self))

    reasons = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        for process in range(num_processes):
            try:
                result = predict(
                    tiny, tmp_path / "tars", folder, process, num_processes, part_size=3
                )
                assert not result.is_complete
            except DataError as error:
                reasons.append(str(error))
    assert len(reasons) == (1 if num_processes == 2 else num_processes)
    part = "Stale file handle); " if is_opened else "1.tar: not readable (Permission denied)"
    assert all(part in reason for reason in reasons)
    rows = read_rows(folder)
    assert len({row[0] for row in rows}) == len(rows) < 40
    assert not any(str(row[3]).startswith("not readable") for row in rows)
    results = [
        predict(tiny, tmp_path / "tars", folder, process, num_processes)
        for process in range(num_processes)
    ]
    assert results[-1].is_complete
    names = [Path(row[0]).name for row in read_rows(folder)]
    assert sorted(names) == sorted(file.name for file in many.iterdir())
