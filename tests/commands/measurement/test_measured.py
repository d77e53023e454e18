"""Tests of settings that a run measures: the same on all ranks, in its config, and on resume."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from finetune.builders import Training, build_training, enable_cache
from finetune.commands.measurement.measured import apply_measured, read_measured
from finetune.commands.stored_run import read_stored_config
from finetune.config.facts import Choice
from finetune.config.load import dump_config, replace_values
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import ConfigError, RunFolderError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from tests.support.runs import build_photo_manifest, create_small_config, write_photos

CHOICES = {
    "optim.lr": Choice(3e-4, "least held-out loss of 3 rates"),
    "augment.name": Choice("light"),
}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    manifest = build_photo_manifest(write_photos(tmp_path / "photos"))
    config = create_small_config(augment__name="medium", trainer__batch_size=4)
    return build_training(config, manifest)


@pytest.fixture
def run(training: Training, tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config_path.write_text(dump_config(training.config), encoding="utf-8")
    return folder


def test_apply_measured_changes_objects_and_keeps_weights(
    training: Training, run: RunFolder
) -> None:
    head = training.module.classifier.network.get_classifier()  # type: ignore[operator]
    torch.nn.init.constant_(head.weight, 0.5)
    updated = apply_measured(run, training, CHOICES, stage="lr", rendezvous=None)
    assert updated.module.classifier is training.module.classifier
    assert bool((head.weight == 0.5).all())
    assert updated.config.optim.lr == updated.peak_learning_rates[0] == 3e-4
    optimizer = updated.module.recipe.make_optimizer(updated.module.classifier)
    assert optimizer.param_groups[0]["lr"] == 3e-4
    transform = updated.datamodule.train_dataset.transform
    assert not transform.has_color_matrix, "light has no color jitter"
    assert updated.reasons["optim.lr"] == CHOICES["optim.lr"].reason


def test_apply_measured_keeps_the_cached_images(
    training: Training, run: RunFolder, tmp_path: Path
) -> None:
    config = replace_values(training.config, {"data.cache": str(tmp_path / "cache")})
    cached = enable_cache(build_training(config, training.manifest), reporter=Reporter())
    updated = apply_measured(run, cached, CHOICES, stage="lr", rendezvous=None).datamodule
    assert updated.train_dataset.source is cached.datamodule.train_dataset.source
    assert updated.val_dataset is cached.datamodule.val_dataset
    assert not updated.train_dataset.transform.has_color_matrix
    assert torch.equal(updated.train_dataset.labels, cached.datamodule.train_dataset.labels)


def test_apply_measured_writes_config_and_reasons(training: Training, run: RunFolder) -> None:
    apply_measured(run, training, CHOICES, stage="first", rendezvous=None)
    more = {"optim.weight_decay": Choice(0.1, "lower held-out loss")}
    first = read_measured(run)
    updated = apply_measured(
        run,
        apply_measured(run, training, CHOICES, stage="first", rendezvous=None),
        more,
        stage="second",
        rendezvous=None,
    )
    assert first == {
        "optim.lr": {"value": 3e-4, "reason": "least held-out loss of 3 rates"},
        "augment.name": {"value": "light", "reason": ""},
    }
    reason = {"value": 0.1, "reason": "lower held-out loss"}
    assert read_measured(run) == first | {"optim.weight_decay": reason}
    stored = read_stored_config(run)
    assert stored.model_dump(mode="json") == updated.config.model_dump(mode="json")
    assert (stored.optim.lr, stored.optim.weight_decay) == (3e-4, 0.1)


def test_apply_measured_checks_the_new_values(training: Training, run: RunFolder) -> None:
    before = run.config_path.read_text(encoding="utf-8")
    choices = {"imbalance.head_rebalancing": Choice("crt")}  # needs a probe
    with pytest.raises(ConfigError):
        apply_measured(run, training, choices, stage="lr", rendezvous=None)
    assert run.config_path.read_text(encoding="utf-8") == before
    assert not run.measured_path.exists()


def test_apply_measured_other_ranks_take_the_values_of_rank_0(
    training: Training, run: RunFolder
) -> None:
    store, results = HashStore(), {}

    def join(rank: int) -> None:
        launch = LaunchInfo(rank, 2, rank, 2, 0, "127.0.0.1", 0, "environment")
        timeout = timedelta(seconds=20)
        with Rendezvous(
            launch, timeout=timeout, connect=lambda: store, poll_seconds=0.05
        ) as rendezvous:
            choices = CHOICES if rank == 0 else None
            results[rank] = apply_measured(
                run, training, choices, stage="lr", rendezvous=rendezvous
            )

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results[0].config == results[1].config
    assert results[1].config.optim.lr == 3e-4
    assert results[1].reasons == results[0].reasons


def test_read_measured_of_damaged_file_names_it(run: RunFolder) -> None:
    assert read_measured(run) == {}
    run.measured_path.write_text("{}", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"measured\.json is damaged"):
        read_measured(run)
