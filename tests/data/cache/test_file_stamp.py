"""Tests of file stamps."""

import os
import time
from pathlib import Path

from finetune.data.cache.file_stamp import FileStamp, read_file_stamps


def test_file_stamp_detects_change_with_same_size_and_mtime(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    os.utime(path, ns=(5, 1234567890123456789))
    before, gone = read_file_stamps([path, tmp_path / "gone.jpg"])
    assert before == FileStamp(str(path), 5, path.stat().st_ctime_ns)
    assert gone == FileStamp(str(tmp_path / "gone.jpg"), -1, -1)
    time.sleep(0.02)
    path.write_bytes(b"54321")
    os.utime(path, ns=(5, 1234567890123456789))  # as archivers and rsync do
    assert read_file_stamps([path]) != [before]
