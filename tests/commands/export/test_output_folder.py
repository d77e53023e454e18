"""Folder that an export is written to."""

from pathlib import Path

from finetune.commands.export.output_folder import choose_output, write_output
from finetune.exporters.export_formats import ExportOptions
from tests.support.helpers import list_names


def test_output_that_is_a_link_to_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to("disk")
    output = choose_output([tmp_path], link, "onnx", ExportOptions())
    assert output == link
    with write_output(output) as temporary:
        (temporary / "model.onnx").touch()
    assert link.readlink() == Path("disk")
    assert "model.onnx" in list_names(tmp_path / "disk")
    assert list_names(tmp_path) == ["disk", "model"]
