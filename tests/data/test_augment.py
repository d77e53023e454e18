"""Augmentation is a pure function of (seed, draw); evaluation is timm's own transform."""

import json
from collections import Counter
from pathlib import Path

import albumentations as A  # noqa: N812 - the name that its own documentation uses
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from finetune.data.augment import (
    AUGMENTATIONS,
    EvalTransform,
    TrainTransform,
    load_pipeline,
    train_transform,
)
from finetune.errors import ConfigError
from finetune.models.classifier import normalise
from finetune.types import Draw, PreprocessSpec
from tests.helpers import noise, smooth

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PreprocessSpec((3, 32, 32), MEAN, STD)
PHOTO = noise(width=60, height=40)


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (40, 30), (224, 224), (1000, 33)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "interpolation"),
    [
        ("center", 0.875, "bilinear"),
        ("center", 1.0, "bicubic"),
        ("squash", 0.9, "bicubic"),
        ("border", 0.9, "lanczos"),
    ],
)
def test_evaluation_sees_what_timm_would_show(
    size: tuple[int, int], crop_mode: str, crop_pct: float, interpolation: str
) -> None:
    image = smooth(width=size[0], height=size[1])
    spec = PreprocessSpec((3, 96, 96), MEAN, STD, interpolation, crop_pct, crop_mode)
    reference = create_transform(
        input_size=spec.input_size,
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )(image)
    pixels = EvalTransform(spec)(image)
    assert pixels.dtype == np.uint8
    ours = normalise(torch.from_numpy(pixels)[None], mean=MEAN, std=STD)[0]
    # back to [0, 1], where the tolerance of 1/255 holds
    difference = (ours - reference).abs() * torch.tensor(STD).view(3, 1, 1)
    assert difference.mean() < 1 / 255
    assert reference.std() > 0.1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_preset_is_a_pure_function_of_seed_and_draw(name: str) -> None:
    draws = [Draw(row, epoch, repeat) for row in (0, 5) for epoch in (0, 1) for repeat in (0, 1)]
    first = train_transform(name, spec=SPEC, seed=3)
    forth = [first(PHOTO, draw) for draw in draws]
    again = train_transform(name, spec=SPEC, seed=3)
    back = [again(PHOTO, draw) for draw in reversed(draws)][::-1]
    np.testing.assert_array_equal(np.stack(forth), np.stack(back))
    assert np.stack(forth).dtype == np.uint8
    assert np.stack(forth).shape == (8, 32, 32, 3)
    other_seed = train_transform(name, spec=SPEC, seed=4)(PHOTO, draws[0])
    different = len({pixels.tobytes() for pixels in [*forth, other_seed]})
    assert different == (1 if name == "none" else 9)


def test_the_draw_of_one_image_does_not_depend_on_the_images_before_it() -> None:
    transform = train_transform("strong", spec=SPEC, seed=0)
    alone = transform(PHOTO, Draw(7, 2, 0))
    for row in range(5):
        transform(noise(seed=row, width=100, height=50), Draw(row, 2, 0))
    np.testing.assert_array_equal(transform(PHOTO, Draw(7, 2, 0)), alone)


def test_steps_fire_independently_of_each_other() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    pixels = np.asarray(image)
    cases = {
        (h, v): pixels[:: -1 if v else 1, :: -1 if h else 1].tobytes()
        for h in (False, True)
        for v in (False, True)
    }
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([A.VerticalFlip(p=1)], p=0.5)])
    transform = TrainTransform(flips, seed=0)
    seen = Counter(transform(image, Draw(row, 0, 0)).tobytes() for row in range(800))
    # four equal chances: five standard deviations around 200
    for case in cases.values():
        assert abs(seen[case] - 200) < 5 * (800 * 0.25 * 0.75) ** 0.5


def test_a_crop_shrinks_with_antialiasing() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    transform = train_transform("light", spec=SPEC, seed=0)
    pixels = transform(Image.fromarray(stripes), Draw(0, 0, 0)).astype(float)
    assert abs(pixels - 127.5).max() < 30


@pytest.fixture
def pipeline() -> A.Compose:
    return A.Compose([A.RandomResizedCrop((32, 32)), A.HorizontalFlip(), A.ToGray(p=0.3)])


@pytest.mark.parametrize("suffix", ["json", "JSON", "yaml", "yml"])
def test_a_saved_pipeline_does_what_it_did(
    tmp_path: Path, pipeline: A.Compose, suffix: str
) -> None:
    file = tmp_path / f"mine.{suffix}"
    A.save(pipeline, file, data_format="json" if suffix.lower() == "json" else "yaml")
    loaded = train_transform(str(file), spec=SPEC, seed=1)
    direct = TrainTransform(pipeline, seed=1)
    for row in range(10):
        np.testing.assert_array_equal(
            loaded(PHOTO, Draw(row, 0, 0)), direct(PHOTO, Draw(row, 0, 0))
        )


def test_a_single_saved_step_is_a_pipeline(tmp_path: Path) -> None:
    A.save(A.RandomResizedCrop((32, 32), p=1), tmp_path / "one.json")
    transform = train_transform(str(tmp_path / "one.json"), spec=SPEC, seed=1)
    assert transform(PHOTO, Draw(0, 0, 0)).shape == (32, 32, 3)


CROP = A.RandomResizedCrop((32, 32))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([CROP, A.Normalize()], "contains Normalize, but finetune normalises by itself"),
        ([CROP, A.Sequential([A.Normalize()], p=0.01)], "contains Normalize"),
        ([CROP, A.OneOf([A.HorizontalFlip(), A.ToFloat()])], "contains ToFloat"),
        ([A.RandomResizedCrop((16, 16))], r"shape \(16, 16, 3\), but uint8 of \(32, 32, 3\)"),
        ([A.SmallestMaxSize(32)], r"End it with RandomResizedCrop\(\(32, 32\)\)"),
        ([A.RandomResizedCrop((32, 32), p=0.5)], r"but uint8 of \(32, 32, 3\) is needed"),
        ([A.RandomCrop(500, 500)], "fails on a 96x64 image"),
    ],
)
def test_a_pipeline_that_cannot_feed_the_network_is_refused(
    tmp_path: Path, steps: list[A.BasicTransform], message: str
) -> None:
    A.save(A.Compose(steps), tmp_path / "x.json")
    with pytest.raises(ConfigError, match=rf"augment\.name: .*x\.json.*{message}"):
        train_transform(str(tmp_path / "x.json"), spec=SPEC, seed=0)


def saved_with(step: str, **arguments: object) -> str:
    inner = {"__class_fullname__": step, "p": 0.5, **arguments}
    tree = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [inner]}
    return json.dumps({"__version__": "2.0.8", "transform": tree})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", saved_with("GaussNoise", var_limit=[1, 2]), "no pipeline .*var_limit"),
        ("x.json", saved_with("NoSuchStep"), "no pipeline .*NoSuchStep"),
        ("x.json", "{", "is no pipeline that albumentations 2"),
        ("x.json", "[1, 2]", "is no pipeline"),
        ("x.yaml", "a: 1", r"is no pipeline .*albumentations\.save\(pipeline, 'x\.yaml'\)"),
        ("x.yaml", "{", "is no pipeline"),
        ("x.json", None, r"x\.json does not exist"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)augment\.name: .*{message}"):
        load_pipeline(tmp_path / name)
