"""Tests of validating many files: every file once, in order."""

from pathlib import Path

from finetune.data.images.validate import filter_readable
from finetune.types import ReadOptions, RejectedFile, Sample
from tests.support.helpers import create_noise, write_images


def test_filter_readable_separates_broken_files_in_order(photos: Path) -> None:
    (photos / "cat/1.png").write_bytes(b"")
    (photos / "dog/3.png").write_text("no image")
    create_noise(width=50, height=50).save(photos / "cat/4.png")
    samples = [Sample(f"cat/{i}.png", "cat") for i in (5, 4, 3, 1, 0, 9)]
    samples += [Sample("dog/3.png", "dog"), Sample((photos / "dog/0.png").as_posix(), "dog")]
    steps: list[int] = []
    good, bad = filter_readable(
        photos, samples, options=ReadOptions(max_pixels=2_000), on_progress=steps.append
    )
    assert good == [samples[0], samples[2], samples[4], samples[7]]
    assert [(entry.path, entry.reason.partition(":")[0]) for entry in bad] == [
        ("cat/4.png", "too large"),
        ("cat/1.png", "empty file"),
        ("cat/9.png", "does not exist"),
        ("dog/3.png", "not an image"),
    ]
    assert sum(steps) == len(samples)


def test_filter_readable_more_files_than_one_chunk(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    samples = [Sample("a.png", "x"), *(Sample(f"{i}.png", "x") for i in range(2100))]
    samples.append(Sample("b.png", "x"))
    good, bad = filter_readable(tmp_path, samples, options=ReadOptions(max_pixels=1_000))
    assert good == [samples[0], samples[-1]]
    assert bad == [RejectedFile(sample.path, "does not exist") for sample in samples[1:-1]]
    assert filter_readable(tmp_path, [], options=ReadOptions(max_pixels=1)) == ([], [])
