"""Batches of the loaders over ranks, micro-batches, resumed epochs and the pixel cache."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from finetune.builders import enable_cache
from finetune.data.cache.pixel_store import StoredSource
from finetune.data.dataset import Batch, ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.training.datamodule import ImageDataModule
from finetune.types import ReadOptions, Reporter
from tests.support.runs import create_small_training


def build_datamodule(
    root: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    steps: int = 0,
    **settings: object,
) -> ImageDataModule:
    """Return the data module of a rank after ``epoch`` epochs and ``steps`` of the next one."""
    training = create_small_training(
        root, trainer__devices=world_size, model__batch_norm="frozen", **settings
    )
    datamodule = enable_cache(training, reporter=Reporter()).datamodule
    accumulate = datamodule.loader_options.accumulate_grad_batches
    epochs = SimpleNamespace(processed=epoch, ready=epoch + (steps > 0))
    batches = SimpleNamespace(processed=steps * accumulate)
    trainer_stub = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=epochs),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=batches)),
        ),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    datamodule.trainer = cast(Any, trainer_stub)
    return datamodule


def get_rows(batches: list[Batch]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("strategy", ["none", "weighted"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_train_dataloader_ranks_and_micro_batches_form_global_batch(
    animals: Path, strategy: str, world_size: int, accumulate: int
) -> None:
    single = build_datamodule(animals, epoch=3, imbalance__strategy=strategy)
    expected = get_rows(list(single.train_dataloader()))
    assert [len(rows) for rows in expected] == [8, 8, 8]
    ranks = [
        get_rows(
            list(
                build_datamodule(
                    animals,
                    rank=rank,
                    world_size=world_size,
                    epoch=3,
                    imbalance__strategy=strategy,
                    trainer__accumulate_grad_batches=accumulate,
                ).train_dataloader()
            )
        )
        for rank in range(world_size)
    ]
    assert {len(rows) for rank in ranks for rows in rank} == {8 // world_size // accumulate}
    for step, rows in enumerate(expected):
        micro_batches = slice(step * accumulate, (step + 1) * accumulate)
        combined = [row for rank in ranks for batch in rank[micro_batches] for row in batch]
        assert sorted(combined) == sorted(rows)


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_val_dataloader_ranks_together_cover_all_images(animals: Path, world_size: int) -> None:
    settings = {"trainer__batch_size": 16}
    ranks = [
        build_datamodule(animals, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    rows_of_ranks = [
        [row for rows in get_rows(list(datamodule.val_dataloader())) for row in rows]
        for datamodule in ranks
    ]
    assert len({len(rows) for rows in rows_of_ranks}) == 1
    # 15 validation images, then as many training images, which never share a batch with them
    assert {row for rows in rows_of_ranks for row in rows} == set(range(30))
    for datamodule in ranks:
        for rows in get_rows(list(datamodule.val_dataloader())):
            assert len({row < 15 for row in rows}) == 1


def test_val_dataloader_neither_shuffles_nor_augments(animals: Path) -> None:
    datamodule = build_datamodule(animals, augment__name="strong", trainer__train_eval="off")
    once, twice = (list(datamodule.val_dataloader()) for _ in range(2))
    assert [row for rows in get_rows(once) for row in rows] == list(range(15))
    for first, second in zip(once, twice, strict=True):
        assert torch.equal(first["image"], second["image"])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_train_dataloader_resumed_epoch_has_its_own_order(animals: Path, epoch: int) -> None:
    fresh = build_datamodule(animals, epoch=epoch)
    sampler = EpochSampler(None, num_images=24, batch_size=8, seed=0)
    sampler.set_epoch(epoch)
    rows = [row for batch in get_rows(list(fresh.train_dataloader())) for row in batch]
    assert rows == [draw.row for draw in sampler]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_train_dataloader_mid_epoch_resume_yields_remaining_batches(
    animals: Path, world_size: int, accumulate: int, steps: int
) -> None:
    for rank in range(world_size):
        full, remaining = (
            build_datamodule(
                animals,
                rank=rank,
                world_size=world_size,
                epoch=2,
                steps=num_done,
                trainer__accumulate_grad_batches=accumulate,
            ).train_dataloader()
            for num_done in (0, steps)
        )
        assert get_rows(list(remaining)) == get_rows(list(full))[steps * accumulate :]
        assert isinstance(remaining.sampler, EpochSampler)
        remaining.sampler.set_epoch(3)  # later epochs are complete
        assert len(list(remaining)) == len(list(full)) == 3 * accumulate


@pytest.mark.parametrize("num_val", [1, 2, 3, 4, 15])
def test_val_dataloader_same_batches_for_any_world_size(num_val: int, animals: Path) -> None:
    def get_batches(world_size: int) -> list[list[list[int]]]:
        ranks = []
        for rank in range(world_size):
            settings: dict[str, Any] = {"trainer__batch_size": 4, "data__cache": "off"}
            settings["trainer__train_eval"] = "off"
            datamodule = build_datamodule(animals, rank=rank, world_size=world_size, **settings)
            paths = [Path(datamodule.val_dataset.source.get_name(row)) for row in range(num_val)]
            files = FileSource(paths, options=ReadOptions(max_pixels=10**6))
            datamodule.val_dataset = ImageDataset(
                files,
                datamodule.val_dataset.labels[:num_val].tolist(),
                datamodule.val_dataset.transform,
            )
            ranks.append(get_rows(list(datamodule.val_dataloader())))
        return ranks

    (single,) = get_batches(1)
    assert [row for rows in single for row in rows] == list(range(num_val))
    for world_size in (2, 4):
        ranks = get_batches(world_size)
        assert len({len(rank) for rank in ranks}) == 1, "otherwise ranks would wait for ever"
        all_batches = [rows for rank in ranks for rows in rank]
        assert all(rows in single for rows in all_batches)
        assert all(rows in all_batches for rows in single)


def test_train_dataloader_labels_and_pixels_match_rows(animals: Path) -> None:
    datamodule = build_datamodule(animals)
    for batch in datamodule.train_dataloader():
        for position, row in enumerate(batch["index"].tolist()):
            # the images were written class by class
            assert int(batch["label"][position]) == row // 8
            assert torch.equal(batch["image"][position], datamodule.train_dataset[row]["image"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataloaders_cached_pixels_equal_files(animals: Path, num_workers: int) -> None:
    files, cached = (
        build_datamodule(
            animals,
            epoch=1,
            data__cache=cache,
            data__num_workers=workers,
            augment__name="medium",
            imbalance__strategy="weighted",
        )
        for cache, workers in (("off", 0), ("on", num_workers))
    )
    assert isinstance(files.train_dataset.source, FileSource)
    assert isinstance(cached.train_dataset.source, StoredSource)
    assert isinstance(cached.val_dataset.source, StoredSource)
    for loaders in (
        (files.train_dataloader(), cached.train_dataloader()),
        (files.val_dataloader(), cached.val_dataloader()),
    ):
        for expected, actual in zip(*loaders, strict=True):
            assert actual.keys() == expected.keys()
            for name in expected:
                assert torch.equal(actual[name], expected[name]), name
