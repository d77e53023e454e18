"""Every command gives a file the same verdict, reason and pixels, whatever its kind."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.errors import DataError
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter, create_noise, create_smooth_image
from tests.support.image_kinds import ENCODERS, KINDS, encode

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

pytestmark = pytest.mark.runs

REFUSED = {name: kind.reason for name, kind in KINDS.items() if kind.pixels is None}


class ActingReporter(RecordingReporter):
    """Reporter that calls a function when a task starts."""

    def __init__(self, task: str, action: object) -> None:
        super().__init__()
        self.task, self.action = task, action

    def start(self, task: str, total: int) -> None:
        """Call the function."""
        del total
        if task == self.task:
            assert callable(self.action)
            self.action()


@pytest.fixture(scope="module")
def mixture(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of ordinary images and of all kinds, in one class, and a very long one."""
    root = tmp_path_factory.mktemp("data") / "mixture"
    shutil.copytree(insects, root)
    for name, kind in KINDS.items():
        (root / CLASSES[0] / name).write_bytes(kind.data)
    long = create_noise(width=1, height=65_000)
    (root / CLASSES[0] / "long.jpg").write_bytes(encode(long, "JPEG"))
    return root


def check_reasons(reasons: dict[str, str]) -> None:
    by_name = {Path(path).name: reason for path, reason in reasons.items()}
    assert set(by_name) == set(REFUSED)
    for name, pattern in REFUSED.items():
        assert re.search(pattern, by_name[name]), (name, by_name[name])


def test_commands_give_every_kind_of_file_the_same_verdict(
    trained: FitResult, mixture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reporter = RecordingReporter()
    audit = finetune.inspect(mixture, output=tmp_path / "audit", reporter=reporter).audit
    expected = {entry.path: entry.reason for entry in audit.unreadable}
    check_reasons(expected)
    assert "2 HEIC (iPhone photo) files: to read them, pip install" in " ".join(reporter.notes)
    predicted = finetune.predict(trained.run_dir, mixture, device="cpu")
    evaluated = finetune.evaluate(trained.run_dir / "bundle", mixture, device="cpu")
    run = finetune.fit(
        mixture,
        backbone="resnet10t",
        weights="random",
        epochs=1,
        output=tmp_path / "run",
        config={
            "data.image_size": 32,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "probe.enabled": "off",
        },
    )
    with (run.run_dir / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        in_run = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    by_command = {
        "predict": {str(Path(e.path).relative_to(mixture)): e.reason for e in predicted.rejected},
        "evaluate": {entry.path: entry.reason for entry in evaluated.rejected},
        "fit": in_run,
    }
    for command, reasons in by_command.items():
        assert reasons == expected, command
    output = capfd.readouterr()
    for library in ("PIL", "TIFF", "Warning", "decoder"):
        assert library not in output.err


def test_predict_sees_the_right_pixels_of_every_kind(trained: FitResult, tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        if kind.pixels is None:
            continue
        (tmp_path / "given").mkdir(exist_ok=True)
        (tmp_path / "right").mkdir(exist_ok=True)
        (tmp_path / "given" / name).write_bytes(kind.data)
        Image.fromarray(kind.pixels).save(tmp_path / "right" / f"{name}.png")
    given, right = (
        finetune.predict(trained.run_dir, tmp_path / folder, device="cpu", top_k=3)
        for folder in ("given", "right")
    )
    assert given.rejected == right.rejected == ()
    assert len(given.predictions) == len(right.predictions) >= 15
    for one, other in zip(given.predictions, right.predictions, strict=True):
        by_label = (dict(zip(p.labels, p.probabilities, strict=True)) for p in (one, other))
        first, second = by_label
        for label in first:
            assert first[label] == pytest.approx(second[label], abs=0.01), one.path


@pytest.mark.parametrize("name", ["rgb8_colour.png", "lossless_colour.jpg", "heic.jpg", "cut.tif"])
def test_single_file_of_any_name_is_decided_by_its_content(
    trained: FitResult, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "photo.dat"
    file.write_bytes(KINDS[name].data)
    if KINDS[name].pixels is None:
        with pytest.raises(DataError, match=KINDS[name].reason.removeprefix("^")):
            finetune.predict(trained.run_dir, file, device="cpu")
    else:
        assert len(finetune.predict(trained.run_dir, file, device="cpu").predictions) == 1


def write_three(folder: Path) -> list[Path]:
    files = []
    for number, suffix in enumerate(("jpg", "png", "lzw.tif")):
        file = folder / CLASSES[0] / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(ENCODERS[suffix](create_smooth_image(width=60, height=50)))
        files.append(file)
    for name in CLASSES[1:]:
        (folder / name).mkdir()
        create_noise().save(folder / name / "x.png")
    return files


def remove(files: list[Path]) -> None:
    for file in files:
        file.unlink()


def spoil(files: list[Path]) -> None:
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])


def test_predict_files_that_fail_in_the_middle_are_rows_with_their_reasons(
    trained: FitResult, tmp_path: Path
) -> None:
    files = write_three(tmp_path / "photos")
    listing = tmp_path / "photos.txt"
    others = sorted((tmp_path / "photos").glob("*/x.png"))
    listing.write_text("".join(f"{file}\n" for file in [*files, *others]), encoding="utf-8")
    reporter = ActingReporter("predicting", lambda: spoil(files))
    result = finetune.predict(
        trained.run_dir,
        listing,
        output=tmp_path / "out.csv",
        device="cpu",
        batch_size=2,
        reporter=reporter,
    )
    assert {Path(entry.path): entry.reason for entry in result.rejected} == {
        files[0]: "does not exist",
        files[1]: "truncated PNG",
    }
    assert len(result.predictions) == 3
    rows = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert f"{files[0]},,,does not exist" in rows
    assert ["2 files without prediction" in warning for warning in reporter.warnings] == [True]


def test_evaluate_files_that_fail_in_the_middle_are_counted_and_named(
    trained: FitResult, tmp_path: Path
) -> None:
    files = write_three(tmp_path / "photos")
    reporter = ActingReporter("evaluating", lambda: spoil(files))
    result = finetune.evaluate(
        trained.run_dir, tmp_path / "photos", device="cpu", reporter=reporter
    )
    assert result.evaluation.num_images == 3
    assert {entry.path: entry.reason for entry in result.rejected} == {
        f"{CLASSES[0]}/0.jpg": "does not exist",
        f"{CLASSES[0]}/1.png": "truncated PNG",
    }
    assert "2 files left out" in reporter.warnings[-1]
    (tmp_path / "alone" / CLASSES[0]).mkdir(parents=True)
    for name in CLASSES:
        (tmp_path / "alone" / name).mkdir(exist_ok=True)
        shutil.copy(files[2], tmp_path / "alone" / name / "x.tif")
    alone = sorted((tmp_path / "alone").rglob("*.tif"))
    reporter = ActingReporter("evaluating", lambda: remove(alone))
    with pytest.raises(DataError, match="can be read any more: does not exist"):
        finetune.evaluate(trained.run_dir, tmp_path / "alone", device="cpu", reporter=reporter)


def test_predict_black_pixels_of_failed_files_are_no_prediction(
    trained: FitResult, tmp_path: Path
) -> None:
    """The row of a failed file takes a place in its batch; the others keep theirs."""
    files = write_three(tmp_path / "photos")
    before = finetune.predict(trained.run_dir, tmp_path / "photos", device="cpu")
    reporter = ActingReporter("predicting", lambda: spoil(files))
    after = finetune.predict(trained.run_dir, tmp_path / "photos", device="cpu", reporter=reporter)
    expected = {p.path: p for p in before.predictions if Path(p.path) not in files[:2]}
    assert {p.path for p in after.predictions} == set(expected)
    for prediction in after.predictions:
        assert prediction.labels == expected[prediction.path].labels
        np.testing.assert_allclose(
            prediction.probabilities, expected[prediction.path].probabilities, atol=1e-5
        )
