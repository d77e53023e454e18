"""Tests of the choice of flips, turns and crops from the images of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import finetune
from finetune.config.schema import Config
from tests.support.helpers import RecordingReporter
from tests.support.runs import create_small_config, write_weights

pytestmark = pytest.mark.runs


def write_images(root: Path, *, are_mirrored: bool, num_images: int = 60) -> Path:
    """Write two classes: of two colours, or of ramps that are mirror images of the other class.

    Args:
        root: Folder of the images.
        are_mirrored: Whether the classes are mirror images of each other.
        num_images: Images of each class.
    """
    random = np.random.default_rng(3)
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for number in range(num_images):
            pixels = np.kron(random.integers(0, 80, (4, 4, 3)), np.ones((8, 8, 1)))
            pixels += random.integers(0, 30, pixels.shape)
            if are_mirrored:
                pixels += ((np.arange(32) + random.integers(8)) % 8 * 20)[None, :, None]
                pixels = pixels[:, :: -1 if label else 1]
            else:
                pixels[..., label] += 50
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def build_config(data: Path, output: Path, pretrained: Path, **more: object) -> Config:
    return create_small_config(
        data__path=str(data),
        model__weights=str(pretrained),
        augment__name="light",
        trainer__epochs=1,
        output=str(output),
        **more,
    )


def read_augment(run: Path) -> dict[str, object]:
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    augment: dict[str, object] = tree["augment"]
    return augment


def test_fit_does_not_flip_classes_that_are_mirror_images(pretrained: Path, tmp_path: Path) -> None:
    data, reporter = write_images(tmp_path / "data", are_mirrored=True), RecordingReporter()
    result = finetune.fit(build_config(data, tmp_path / "run", pretrained), reporter=reporter)
    augment = read_augment(tmp_path / "run")
    assert augment["hflip"] == "off"
    assert "auto" not in augment.values()
    measured = json.loads((tmp_path / "run" / "measured.json").read_text(encoding="utf-8"))
    assert measured["settings"] == result.measured
    assert measured["settings"]["augment.hflip"]["value"] == "off"
    assert "mirrored" in measured["settings"]["augment.hflip"]["reason"]
    assert any(note.startswith("augment.hflip=off: ") for note in reporter.notes)
    card = json.loads((tmp_path / "run" / "bundle" / "finetune.json").read_text(encoding="utf-8"))
    assert card["facts"]["flipped"] is False
    assert card["facts"]["flipped_by"] == "augment.hflip=off"
    pending = {choice["key"]: choice["value"] for choice in result.plan["recipe"]}
    assert pending["augment.hflip"] == pending["augment.min_crop_scale"] == "auto"


def test_fit_flips_classes_that_are_not_mirror_images(pretrained: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", are_mirrored=False)
    result = finetune.fit(build_config(data, tmp_path / "run", pretrained))
    assert read_augment(tmp_path / "run")["hflip"] == "on"
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert tree["probe"]["hflip"] == "on"
    assert result.measured["augment.hflip"]["value"] == "on"


def test_fit_tries_larger_crops_only_where_smaller_ones_are_not_accepted(
    pretrained: Path, tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data", are_mirrored=False)
    cache = tmp_path / "cache"
    result = finetune.fit(build_config(data, tmp_path / "run", pretrained, data__cache=str(cache)))
    assert result.measured["augment.min_crop_scale"]["value"] == 0.5  # of the preset "light"
    stores = [folder.name for folder in cache.rglob("*crop-of-*") if folder.is_dir()]
    assert len(stores) == 1
    assert "crop-of-0.5" in stores[0]


def test_resume_keeps_the_augmentation_that_was_measured(pretrained: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", are_mirrored=True, num_images=30)
    run = finetune.fit(build_config(data, tmp_path / "run", pretrained)).run_dir
    before, reporter = read_augment(run), RecordingReporter()
    finetune.resume(run, assignments={"trainer.epochs": 2}, reporter=reporter)
    assert read_augment(run) == before
    assert not any("augment." in note for note in reporter.notes)


def test_fit_with_given_settings_measures_nothing(pretrained: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", are_mirrored=True, num_images=20)
    given = {
        "augment__hflip": "on",
        "augment__vflip": "off",
        "augment__rot90": "on",
        "augment__min_crop_scale": 0.7,
    }
    result = finetune.fit(build_config(data, tmp_path / "run", pretrained, **given))
    assert not [key for key in result.measured if key.startswith("augment.")]
    augment = read_augment(tmp_path / "run")
    assert [augment[key] for key in ("hflip", "vflip", "rot90", "min_crop_scale")] == [
        "on", "off", "on", 0.7,
    ]  # fmt: skip


def test_stored_config_without_the_keys_keeps_the_preset(pretrained: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", are_mirrored=True, num_images=20)
    run = finetune.fit(build_config(data, tmp_path / "run", pretrained)).run_dir
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("hflip", "vflip", "rot90", "min_crop_scale"):
        del tree["augment"][key]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    finetune.resume(run, assignments={"trainer.epochs": 2})
    augment = read_augment(run)
    assert [augment[key] for key in ("hflip", "vflip", "rot90", "min_crop_scale")] == [
        "on", "off", "off", 0.5,
    ]  # fmt: skip
