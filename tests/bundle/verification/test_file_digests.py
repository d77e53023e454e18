"""Tests of the record of an export's digests: each changed file is named before it is opened."""

import json
from pathlib import Path

import pytest

from finetune.bundle.bundle import load_model
from finetune.bundle.verification.file_digests import (
    DIGESTS_FILE,
    check_file_digests,
    write_file_digests,
)
from finetune.errors import RunFolderError

FILES = {
    "onnx": ("model.onnx", "model.onnx.data"),
    "openvino": ("model.xml", "model.bin"),
    "torch": ("model.pt2",),
    "timm": ("model.safetensors", "config.json"),
}
CASES = [(files[0], changed) for files in FILES.values() for changed in files]


def write_export(folder: Path, first: str) -> Path:
    """Write the files of an export and their record; return the model file."""
    names = next(files for files in FILES.values() if files[0] == first)
    for name in (*names, "README.md", "labels.txt"):
        (folder / name).write_bytes(b"{}" * 1000)
    write_file_digests(folder)
    return folder / first


@pytest.mark.parametrize(("model", "changed"), CASES)
def test_changed_file_is_named_when_the_model_is_loaded(
    tmp_path: Path, model: str, changed: str
) -> None:
    file = write_export(tmp_path, model)
    check_file_digests(file)
    content = bytearray((tmp_path / changed).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / changed).write_bytes(content)
    with pytest.raises(RunFolderError, match=f"SHA-256 of {changed} is .* and not .*export the"):
        check_file_digests(file)
    with pytest.raises(RunFolderError, match="SHA-256"):
        load_model(tmp_path)


def test_missing_file_and_names_in_capitals(tmp_path: Path) -> None:
    file = write_export(tmp_path, "model.xml")
    (tmp_path / "model.bin").rename(tmp_path / "MODEL.BIN")
    check_file_digests(file.rename(tmp_path / "MODEL.XML"))
    (tmp_path / "MODEL.BIN").unlink()
    with pytest.raises(RunFolderError, match=r"model\.bin is missing"):
        check_file_digests(tmp_path / "MODEL.XML")


def test_pages_and_labels_may_change_and_files_without_a_record_are_not_checked(
    tmp_path: Path,
) -> None:
    file = write_export(tmp_path, "model.onnx")
    (tmp_path / "README.md").write_text("another page")
    (tmp_path / "labels.txt").write_text("other labels")
    check_file_digests(file)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"of another tool")
    check_file_digests(other)
    file.write_bytes(b"rewritten on purpose")
    (tmp_path / DIGESTS_FILE).unlink()
    check_file_digests(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 1}', '{"sha256": {"model.onnx": 1}}'])
def test_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    file = write_export(tmp_path, "model.onnx")
    (tmp_path / DIGESTS_FILE).write_text(text)
    with pytest.raises(RunFolderError, match=rf"{DIGESTS_FILE} is damaged"):
        check_file_digests(file)


def test_folder_without_model_files_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    write_file_digests(tmp_path)
    assert not (tmp_path / DIGESTS_FILE).exists()
