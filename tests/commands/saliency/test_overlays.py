"""Tests of ``finetune predict --saliency``, on a model that reads one corner of an image."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from finetune.bundle.bundle import save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.cli.main import run
from finetune.commands.predict import predicted_files
from finetune.commands.predict.predict import predict
from finetune.errors import ConfigError, RunFolderError, StorageError
from finetune.types import PreprocessSpec
from tests.support.helpers import RecordingReporter

SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a small network whose first class is that of bright pixels."""
    network: Any = timm.create_model("test_resnet", num_classes=2)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("weight") and tensor.ndim == 4:
                # every layer passes on the mean of its inputs
                tensor.fill_(1 / tensor[0].numel())
        network.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand_as(network.fc.weight))
    spec = PreprocessSpec(
        input_size=(3, 3 * SIDE, 3 * SIDE), mean=(0.0,) * 3, std=(0.1,) * 3,
        interpolation="bilinear", crop_pct=1.0, crop_mode="center",
    )  # fmt: skip
    card = ModelCard(
        backbone="test_resnet", model_args={}, classes=("bright", "dark"), spec=spec, facts={},
        priors=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(network, card, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of dark photos with a bright square, each in another corner."""
    for number, (top, left) in enumerate([(4, 4), (4, 60), (60, 4)]):
        pixels = np.zeros((96, 96, 3), np.uint8)
        pixels[top : top + 30, left : left + 30] = 250
        file = tmp_path / "photos" / "some" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "photos"


def test_trusted_maps_are_written_and_others_named(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    assert run(["predict", str(model), str(photos), "--saliency", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    saliency = json.loads(captured.out)["saliency"]

    assert [row["path"] for row in saliency["images"]] == [
        str(photos / "some" / f"{number}.png") for number in range(3)
    ]
    written = [row for row in saliency["images"] if row["file"] is not None]
    assert written, "the network depends on the square alone"
    for row in written:
        assert row["deletion"] < row["random_deletion"]
        assert Path(row["file"]).relative_to(out) == Path("some") / f"{Path(row['path']).name}.png"
        with Image.open(row["file"]) as picture:
            assert picture.size == (2 * 96, 96)
            shown = np.asarray(picture)
        with Image.open(row["path"]) as photo:
            assert np.abs(shown[:, :96].astype(int) - np.asarray(photo)).max() < 3
    assert sorted(out.rglob("*.png")) == sorted(Path(row["file"]) for row in written)
    assert f"written to {out}" in " ".join(captured.err.split())


def test_model_without_better_maps_writes_none_and_says_so(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    for file in (photos / "some").iterdir():
        Image.new("RGB", (96, 96)).save(file)  # nothing to delete
    result = predict(model, photos, saliency=tmp_path / "maps", reporter=RecordingReporter())

    assert result.saliency is not None
    assert not (tmp_path / "maps").exists()
    assert all(row.file is None for row in result.saliency.rows)
    assert "No saliency map written" in result.saliency.describe()
    assert "Maps of this model beat random ones no more" in result.saliency.describe()


def test_folder_of_maps_must_not_be_a_file(model: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "maps"
    file.write_text("")
    with pytest.raises(RunFolderError, match=r"--saliency .* is a file"):
        predict(model, photos, saliency=file)


def test_images_of_one_name_in_different_folders_have_a_map_each(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    files = []
    for folder, photo in (("a/x", "0.png"), ("b/x", "1.png")):
        file = tmp_path / folder / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes((photos / "some" / photo).read_bytes())
        files.append(file)
    (tmp_path / "list.txt").write_text("\n".join(map(str, [*files, files[0]])))
    out = tmp_path / "maps"
    saliency = predict(model, tmp_path / "list.txt", saliency=out, device="cpu").saliency
    assert saliency is not None
    pictures = [Path(row.file or "") for row in saliency.rows]
    expected = [out / "a/x/1.png.png", out / "b/x/1.png.png"]
    assert pictures == [*expected, expected[0]]
    for picture, file in zip(pictures, files, strict=False):
        with Image.open(picture) as drawn, Image.open(file) as source:
            left = np.asarray(drawn)[:, :96].astype(int)
            assert np.abs(left - np.asarray(source)).max() < 3


def test_predictions_are_complete_before_maps_are_drawn(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.csv"

    def fail(*_: object, **__: object) -> None:
        raise StorageError("Cannot write maps: no space is left on the device.")

    monkeypatch.setattr(predicted_files, "write_overlays", fail)
    with pytest.raises(StorageError, match="no space"):
        predict(model, photos, output=output, saliency=tmp_path / "maps", device="cpu")
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(photos / f"some/{n}.png") for n in range(3)]
    assert all(row["label"] for row in rows)


@pytest.mark.parametrize("is_list", [False, True])
def test_maps_that_would_replace_an_image_are_refused_before_the_prediction(
    model: Path, photos: Path, tmp_path: Path, is_list: bool
) -> None:
    shutil.copy(photos / "some/1.png", photos / "some/0.png.png")
    output = tmp_path / "rows.csv"
    reporter = _RemovingReporter()
    (tmp_path / "list.txt").write_text("\n".join(map(str, (photos / "some").iterdir())))
    given, maps = (tmp_path / "list.txt", photos / "some") if is_list else (photos, photos)
    with pytest.raises(ConfigError, match=r"--saliency .*would replace an image.*0\.png\.png"):
        predict(model, given, output=output, saliency=maps, device="cpu", reporter=reporter)
    assert reporter.steps == []
    assert not output.exists()


class _RemovingReporter(RecordingReporter):
    """Reporter that removes files when the maps begin."""

    def __init__(self, *removed: Path) -> None:
        super().__init__()
        self.removed = removed
        self.steps: list[str] = []

    def start(self, name: str, total: int) -> None:
        """Remove the files."""
        del total
        self.steps.append(name)
        if name == "saliency maps":
            for file in self.removed:
                file.unlink()


def test_image_that_is_removed_meanwhile_has_a_row_and_no_map(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    files = sorted((photos / "some").iterdir())
    whole = predict(model, files[1:], saliency=tmp_path / "whole", device="cpu").saliency
    output, maps = tmp_path / "rows.csv", tmp_path / "maps"
    reporter = _RemovingReporter(files[0])
    result = predict(
        model, photos, output=output, saliency=maps, device="cpu", reporter=reporter
    )  # fmt: skip
    assert len(result.predictions) == len(output.read_text().splitlines()) - 1 == 3
    assert whole is not None
    assert result.saliency is not None
    first, *others = result.saliency.rows
    assert (first.path, first.file, first.deletion) == (str(files[0]), None, None)
    assert [(row.path, row.deletion) for row in others] == [
        (row.path, row.deletion) for row in whole.rows
    ], "the maps of the others are those of their own pixels"
    (warning,) = reporter.warnings
    assert str(files[0]) in warning
    assert "training" not in warning
    assert str(files[0]) not in result.saliency.describe()


def test_saliency_of_images_that_are_all_removed_is_a_reason(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    reporter = _RemovingReporter(*(photos / "some").iterdir())
    result = predict(model, photos, saliency=tmp_path / "m", device="cpu", reporter=reporter)
    assert result.saliency is not None
    assert result.saliency.reason
    assert [row.file for row in result.saliency.rows] == [None] * 3
