"""Tests of the pictures of a run: without them, without time, and without its image files."""

import shutil
from pathlib import Path

from finetune.commands.report.report import report


def test_report_without_pictures_or_without_time_says_so(full_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    report([full_run], output=output, photo_seconds=0)
    page = output.read_text(encoding="utf-8")
    assert 'id="mistakes"' in page
    assert "<img" not in page
    report([full_run], output=output, photo_seconds=1)
    page = output.read_text(encoding="utf-8")
    assert 'src="data:image/webp;base64,' in page
    assert 'id="feature_map"' not in page
    assert "may take 1.0 s" in page


def test_report_of_a_run_whose_images_are_gone_keeps_their_places(
    full_run: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(full_run, run)
    data.mkdir()
    lines = (run / "config.yaml").read_text(encoding="utf-8").splitlines()
    moved = [f"  path: {data}" if line.startswith("  path: ") else line for line in lines]
    (run / "config.yaml").write_text("\n".join(moved), encoding="utf-8")
    page = report([run], output=tmp_path / "report.html").output.read_text(encoding="utf-8")
    assert page.count("<span>file not found</span>") > 3
    assert "can be read." in page
    assert "Filters of the first layer" in page
