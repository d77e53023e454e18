"""One range for all 16-bit files of a dataset, and its conversion to 8 bits."""

import numpy as np
import pytest

from finetune.data.images.bit_depth import DatasetBits, composite_on_white, scale_to_8_bits
from finetune.types import PixelRange, ReadOptions


@pytest.mark.parametrize(
    ("largest", "num_bits"),
    [(1, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16_383, 14),
     (16_384, 16), (65_535, 16)],
)  # fmt: skip
def test_dataset_bits_are_the_fewest_that_hold_every_image(largest: int, num_bits: int) -> None:
    bits = DatasetBits.from_max_values(np.array([0, 1, largest, 0], np.uint32))
    assert bits is not None
    assert (bits.num_images, bits.max_value, bits.num_bits) == (2, largest, num_bits)
    expected = None if num_bits == 16 else PixelRange(0, 2**num_bits - 1)
    assert bits.pixel_range == expected


def test_dataset_bits_without_16_bit_files_are_none() -> None:
    assert DatasetBits.from_max_values(np.zeros(3, np.uint32)) is None
    assert DatasetBits.from_max_values(np.zeros(0, np.uint32)) is None


@pytest.mark.parametrize("num_bits", [8, 10, 12, 14, 16])
def test_scale_to_8_bits_keeps_the_upper_bits(num_bits: int) -> None:
    values = np.arange(2**num_bits, dtype=np.uint16)
    scaled = scale_to_8_bits(values, PixelRange(0, 2**num_bits - 1))
    assert np.array_equal(scaled, values >> (num_bits - 8))


def test_scale_to_8_bits_clips_and_turns_nan_black() -> None:
    values = np.array([-5, 0, 0.5, 1, 7, np.nan, np.inf, -np.inf], np.float32)
    scaled = scale_to_8_bits(values, PixelRange(0, 1))
    assert scaled.tolist() == [0, 0, 128, 255, 255, 0, 255, 0]
    integers = np.array([-2000, -1000, -300, 400, 3000], np.int16)
    assert scale_to_8_bits(integers, PixelRange(-1000, 400)).tolist() == [0, 0, 127, 255, 255]


def test_composite_on_white() -> None:
    color = np.full((1, 3, 3), 100, np.uint8)
    alpha = np.array([[0, 128, 255]], np.uint8)
    plain = composite_on_white(color, alpha, is_premultiplied=False)
    assert plain[0, :, 0].tolist() == [255, round(100 * 128 / 255 + 127), 100]
    premultiplied = composite_on_white(color, alpha, is_premultiplied=True)
    assert premultiplied[0, :, 0].tolist() == [255, 227, 100]


@pytest.mark.parametrize("text", ["0:4095", "-1000:400", "0:1.5", "0.25:0.75"])
def test_pixel_range_text_round_trip(text: str) -> None:
    assert str(PixelRange.parse(text)) == text


@pytest.mark.parametrize("text", ["", "5", "5:", "1:1", "2:1", "0:inf", "nan:1", "0:1:2"])
def test_pixel_range_parse_invalid_text_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        PixelRange.parse(text)


@pytest.mark.parametrize(
    ("text", "num_bits"), [("0:255", 8), ("0:4095", 12), ("0:4096", None), ("1:4095", None),
                           ("0:1", None), ("0:65535", 16)],
)  # fmt: skip
def test_pixel_range_num_bits(text: str, num_bits: int | None) -> None:
    assert PixelRange.parse(text).num_bits == num_bits


def test_pixel_tag_is_different_for_each_range_and_empty_without_one() -> None:
    texts = ["0:255", "0:4095", "-1000:400", "0:1", "0:1.5"]
    tags = [ReadOptions(pixel_range=PixelRange.parse(text)).pixel_tag for text in texts]
    assert len(set(tags)) == len(texts)
    assert not any(set(tag) & set("/: ") for tag in tags)
    assert ReadOptions().pixel_tag == ""
