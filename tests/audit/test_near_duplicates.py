"""Duplicates are found after every kind of change; merely similar images are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.audit.fingerprint import compute_fingerprint
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.audit.near_duplicates import BLANK_CONTRAST, DuplicateGroup, find_duplicates
from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import ReadOptions, Reporter, Sample
from tests.support.helpers import ROOT, create_noise
from tests.support.pictures import create_scene, write_jpeg

SHARED = ROOT.parent / "shared" / "data"


def fingerprint(paths: list[Path]) -> FingerprintTable:
    samples = [Sample(path.as_posix(), "x") for path in paths]
    readable, table, _ = fingerprint_files(
        Path("/"),
        samples,
        options=ReadOptions(max_pixels=10**7),
        stores_dir=None,
        limit_bytes=0,
        reporter=Reporter(),
    )
    assert readable == samples
    return table


def find_groups(paths: list[Path]) -> list[DuplicateGroup]:
    return find_duplicates(fingerprint(paths), paths)


def cropped(image: Image.Image, left: float, top: float, right: float, down: float) -> Image.Image:
    """Return an image without these fractions of its width and height at its edges."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width),
         round((1 - down) * height))
    )  # fmt: skip


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "unchanged": lambda image: image,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "enlarged, other aspect ratio": lambda image: image.resize((400, 280)),
    "grey": lambda image: image.convert("L"),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flipped vertically": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotated by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "rotated by 270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "rotated by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "transversed": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "cropped on the left": lambda image: cropped(image, 0.08, 0, 0, 0),
    "cropped in a corner": lambda image: cropped(image, 0.08, 0.08, 0, 0),
    "cropped around": lambda image: cropped(image, 0.04, 0.04, 0.04, 0.04),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "flipped, cropped, darker": lambda image: ImageEnhance.Brightness(
        cropped(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.05, 0, 0, 0.03)
    ).enhance(0.9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_find_duplicates_changed_image_is_found_among_others(tmp_path: Path, change: str) -> None:
    paths = [
        write_jpeg(tmp_path / f"{seed}.jpg", create_scene(seed, width=320, height=240))
        for seed in range(6)
    ]
    for seed in (1, 4):
        image = CHANGES[change](create_scene(seed, width=320, height=240))
        paths.append(write_jpeg(tmp_path / f"duplicate of {seed}.jpg", image, quality=60))
    assert find_groups(paths) == [
        DuplicateGroup((1, 6), is_exact=False),
        DuplicateGroup((4, 7), is_exact=False),
    ]


def test_find_duplicates_distinguishes_exact_and_near(tmp_path: Path) -> None:
    image = create_scene(1)
    paths = [tmp_path / f"{name}.jpg" for name in "abcde"]
    for path, seed in zip(paths, (1, 2, 1, 2, 3), strict=True):
        write_jpeg(path, create_scene(seed))
    paths.append(write_jpeg(tmp_path / "again.jpg", image, quality=50))
    assert paths[0].read_bytes() == paths[2].read_bytes()
    assert find_groups(paths) == [
        DuplicateGroup((0, 2, 5), is_exact=False),
        DuplicateGroup((1, 3), is_exact=True),
    ]


def test_find_duplicates_exif_orientations_are_one_group(tmp_path: Path) -> None:
    paths = [
        write_jpeg(tmp_path / f"{turn}.jpg", create_scene(5), orientation=turn)
        for turn in range(1, 9)
    ]
    assert find_groups(paths) == [DuplicateGroup(tuple(range(8)), is_exact=False)]


def test_find_duplicates_half_brightness_is_another_image(tmp_path: Path) -> None:
    paths = []
    for seed in range(6):
        image = create_scene(seed, width=320, height=240)
        paths.append(write_jpeg(tmp_path / f"{seed}.jpg", image))
        paths.append(
            write_jpeg(tmp_path / f"{seed} dark.jpg", ImageEnhance.Brightness(image).enhance(0.5))
        )
    assert find_groups(paths) == []


def test_find_duplicates_different_images_have_no_groups(tmp_path: Path) -> None:
    paths = [write_jpeg(tmp_path / f"{seed}.jpg", create_scene(seed)) for seed in range(40)]
    assert find_groups(paths) == []


def test_find_duplicates_small_noise_images_have_no_groups(tmp_path: Path) -> None:
    paths = []
    for seed in range(30):
        paths.append(tmp_path / f"{seed}.png")
        create_noise(seed=seed, width=16, height=16).save(paths[-1])
    assert find_groups(paths) == []


def test_find_duplicates_blank_images_match_only_as_files(tmp_path: Path) -> None:
    paths = []
    for number, level in enumerate((0, 0, 128, 129, 255)):
        paths.append(tmp_path / f"{number}.png")
        Image.new("L", (40 + level // 128, 40), level).save(paths[-1])
        assert compute_fingerprint(paths[-1])["contrast"] < BLANK_CONTRAST
    assert find_groups(paths) == [DuplicateGroup((0, 1), is_exact=True)]
    assert find_groups(paths[2:]) == []


def test_find_duplicates_many_of_one_image_are_one_group(tmp_path: Path) -> None:
    paths = []
    for number in range(24):  # more than the number of neighbours that are searched
        image = create_scene(1, width=160 + number, height=120)
        paths.append(write_jpeg(tmp_path / f"{number}.jpg", image, quality=50 + number))
        paths.append(write_jpeg(tmp_path / f"other {number}.jpg", create_scene(100 + number)))
    assert find_groups(paths) == [DuplicateGroup(tuple(range(0, 48, 2)), is_exact=False)]


def test_find_duplicates_chain_is_one_group(tmp_path: Path) -> None:
    """As frames of a moving camera: neighbours match, the first and the last do not."""
    whole = create_scene(7, width=640, height=480)
    frames = [whole.crop((8 * step, 0, 8 * step + 320, 320)) for step in range(21)]
    paths = [write_jpeg(tmp_path / f"{step:02}.jpg", image) for step, image in enumerate(frames)]
    assert find_groups([paths[0], paths[-1]]) == []
    assert find_groups(paths) == [DuplicateGroup(tuple(range(21)), is_exact=False)]


def test_find_duplicates_groups_are_sorted_and_disjoint(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    seeds = random.permutation(np.repeat(np.arange(12), 3)).tolist()
    paths = [
        write_jpeg(
            tmp_path / f"{row}.jpg", create_scene(seed), quality=int(random.integers(50, 95))
        )
        for row, seed in enumerate(seeds)
    ]
    groups = find_groups(paths)
    expected = sorted(
        tuple(row for row, seed in enumerate(seeds) if seed == number) for number in range(12)
    )
    assert [group.rows for group in groups] == expected


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_find_duplicates_progress_adds_up_to_all_images(tmp_path: Path, count: int) -> None:
    paths = []
    for number in range(count):
        paths.append(tmp_path / f"{number}.png")
        # every third is blank, the second and the fifth are equal
        image = create_scene(number % 3) if number % 3 else Image.new("L", (30, 30 + number))
        image.save(paths[-1])
    steps: list[int] = []
    find_duplicates(fingerprint(paths), paths, on_progress=steps.append)
    assert sum(steps) == count


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"90\.jpg .* does not exist"),
        (b"", r"90\.jpg .* empty file"),
    ],
)
def test_find_duplicates_changed_file_raises_data_error(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    paths = [write_jpeg(tmp_path / f"{q}.jpg", create_scene(1), quality=q) for q in (60, 90)]
    table = fingerprint(paths)
    paths[1].unlink()
    if data is not None:
        paths[1].write_bytes(data)
    with pytest.raises(DataError, match=message):
        find_duplicates(table, paths)


@pytest.mark.skipif(
    not (SHARED / "hymenoptera").is_dir(), reason="needs ../shared/data/hymenoptera, 398 photos"
)
def test_find_duplicates_real_photos_recall(tmp_path: Path) -> None:
    folder = SHARED / "hymenoptera"
    scanned = scan(folder)
    originals = [scanned.root / sample.path for sample in scanned.samples[:40]]
    changed = list(CHANGES)[1:]
    paths = [*originals]
    for number, path in enumerate(originals):
        with Image.open(path) as image:
            duplicate = CHANGES[changed[number % len(changed)]](image.convert("RGB"))
        paths.append(write_jpeg(tmp_path / f"{number}.jpg", duplicate, quality=75))
    groups = {group.rows for group in find_groups(paths)}
    pairs = {(row, row + len(originals)) for row in range(len(originals))}
    assert len(groups & pairs) >= 0.9 * len(pairs)
    assert not find_groups(originals)
