"""The ranks' loaders together give the epoch's global batches, and all of validation."""

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
from finetune.types import Reporter
from tests.support.runs import small_training


def module_on(
    root: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    steps: int = 0,
    **settings: object,
) -> ImageDataModule:
    """Return a data module as the trainer of a rank holds it after ``epoch`` epochs.

    ``steps`` more lie behind it, of an epoch that broke off.
    """
    training = small_training(
        root, trainer__devices=world_size, model__batch_norm="frozen", **settings
    )
    data = enable_cache(training, reporter=Reporter()).datamodule
    accumulate = data.loader_options.accumulate_grad_batches
    epochs = SimpleNamespace(processed=epoch, ready=epoch + (steps > 0))
    batches = SimpleNamespace(processed=steps * accumulate)
    stand_in = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=epochs),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=batches)),
        ),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.trainer = cast(Any, stand_in)
    return data


def rows_of(batches: list[Batch]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("strategy", ["none", "weighted"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_the_ranks_and_accumulated_batches_are_the_global_batch(
    animals: Path, strategy: str, world_size: int, accumulate: int
) -> None:
    whole = module_on(animals, epoch=3, imbalance__strategy=strategy)
    expected = rows_of(list(whole.train_dataloader()))
    assert [len(rows) for rows in expected] == [8, 8, 8]
    ranks = [
        rows_of(
            list(
                module_on(
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
        parts = slice(step * accumulate, (step + 1) * accumulate)
        together = [row for rank in ranks for part in rank[parts] for row in part]
        assert sorted(together) == sorted(rows)


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_the_ranks_together_read_all_of_validation(animals: Path, world_size: int) -> None:
    settings = {"trainer__batch_size": 16}
    ranks = [
        module_on(animals, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    found = [
        [row for rows in rows_of(list(data.val_dataloader())) for row in rows] for data in ranks
    ]
    assert len({len(rows) for rows in found}) == 1
    assert {row for rows in found for row in rows} == set(range(15))


def test_validation_is_neither_shuffled_nor_augmented(animals: Path) -> None:
    data = module_on(animals, augment__name="strong")
    once, twice = (list(data.val_dataloader()) for _ in range(2))
    assert [row for rows in rows_of(once) for row in rows] == list(range(15))
    for first, second in zip(once, twice, strict=True):
        assert torch.equal(first["image"], second["image"])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_resumed_epoch_has_its_own_order_from_the_first_batch_on(
    animals: Path, epoch: int
) -> None:
    fresh = module_on(animals, epoch=epoch)
    sampler = EpochSampler(None, num_images=24, batch_size=8, seed=0)
    sampler.set_epoch(epoch)
    found = [row for rows in rows_of(list(fresh.train_dataloader())) for row in rows]
    assert found == [draw.row for draw in sampler]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_broken_off_epoch_goes_on_with_the_images_that_are_left(
    animals: Path, world_size: int, accumulate: int, steps: int
) -> None:
    for rank in range(world_size):
        whole, rest = (
            module_on(
                animals,
                rank=rank,
                world_size=world_size,
                epoch=2,
                steps=done,
                trainer__accumulate_grad_batches=accumulate,
            ).train_dataloader()
            for done in (0, steps)
        )
        assert rows_of(list(rest)) == rows_of(list(whole))[steps * accumulate :]
        assert isinstance(rest.sampler, EpochSampler)
        rest.sampler.set_epoch(3)  # the epochs after it are whole
        assert len(list(rest)) == len(list(whole)) == 3 * accumulate


@pytest.mark.parametrize("num_val", [1, 2, 3, 4, 15])
def test_validation_comes_in_the_same_batches_for_any_number_of_ranks(
    num_val: int, animals: Path
) -> None:
    def batches_of(world_size: int) -> list[list[list[int]]]:
        ranks = []
        for rank in range(world_size):
            settings: dict[str, Any] = {"trainer__batch_size": 4, "data__cache": "off"}
            data = module_on(animals, rank=rank, world_size=world_size, **settings)
            paths = [Path(data.val_dataset.source.get_name(row)) for row in range(num_val)]
            files = FileSource(paths, max_pixels=10**6)
            data.val_dataset = ImageDataset(
                files, data.val_dataset.labels[:num_val].tolist(), data.val_dataset.transform
            )
            ranks.append(rows_of(list(data.val_dataloader())))
        return ranks

    (alone,) = batches_of(1)
    assert [row for rows in alone for row in rows] == list(range(num_val))
    for world_size in (2, 4):
        ranks = batches_of(world_size)
        assert len({len(rank) for rank in ranks}) == 1, "or the others would wait for ever"
        dealt = [rows for rank in ranks for rows in rank]
        assert all(rows in alone for rows in dealt)
        assert all(rows in dealt for rows in alone)


def test_labels_and_pixels_belong_to_their_rows(animals: Path) -> None:
    data = module_on(animals)
    for batch in data.train_dataloader():
        for place, row in enumerate(batch["index"].tolist()):
            # the images were written class by class
            assert int(batch["label"][place]) == row // 8
            assert torch.equal(batch["image"][place], data.train_dataset[row]["image"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kept_pixels_come_in_the_batches_of_the_files(animals: Path, num_workers: int) -> None:
    files, kept = (
        module_on(
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
    assert isinstance(kept.train_dataset.source, StoredSource)
    assert isinstance(kept.val_dataset.source, StoredSource)
    for loaders in (
        (files.train_dataloader(), kept.train_dataloader()),
        (files.val_dataloader(), kept.val_dataloader()),
    ):
        for expected, found in zip(*loaders, strict=True):
            assert found.keys() == expected.keys()
            for name in expected:
                assert torch.equal(found[name], expected[name]), name
